/* Whole messages from and to a zmq socket: `messages.PyMessages`, with one
 * call for a message instead of one for each of its frames.
 *
 * It calls the libzmq that pyzmq calls, since the sockets are pyzmq's, and
 * refuses to load where it cannot be certain which one that is.
 *
 * Threads: a zmq socket is not thread-safe. It is used with the GIL held and
 * without running any Python code: all frames of a message are read before the
 * first becomes a bytes object, and all are copied before the first is sent. So
 * no other thread, and no finalizer, can use or close the socket while a part
 * of a message is read or sent. No function waits. The GIL is released only
 * while a large frame is copied, and at intervals between many small ones; the
 * socket is not in use then. It may be closed meanwhile: pyzmq is asked for
 * libzmq's socket again, which a closed one does not have.
 *
 * A routing id is the exception. A ROUTER accepts or refuses a message at its
 * routing id, so that is sent before the rest is copied: to try a large message
 * again and again must not cost a copy each time. Until the rest is sent,
 * `has_begun` refuses other messages. A ROUTER that is closed meanwhile has
 * passed on nothing.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#ifdef Py_GIL_DISABLED
#  error "this extension needs the GIL: zmq sockets are not thread-safe"
#endif

#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <structmember.h>

/* From zmq.h, which need not be installed. It is the same in all of 4.x. */
typedef union {
    unsigned char content[64];
    void *aligned;
} zmq_msg_t;

enum {
    ETERM = 156384765, /* the context was ended; beside those of the system */
    /* Flags of a call */
    ZMQ_DONTWAIT = 1,
    ZMQ_SNDMORE = 2,
    /* Properties of a frame */
    ZMQ_MORE = 1,
    ZMQ_SRCFD = 2,
    /* An option of a socket, and a bit in its value */
    ZMQ_EVENTS = 15,
    ZMQ_POLLIN = 1,
};

#define FUNCTIONS(DO)                                               \
    DO(void, zmq_version, (int *, int *, int *))                    \
    DO(int, zmq_errno, (void))                                      \
    DO(int, zmq_getsockopt, (void *, int, void *, size_t *))        \
    DO(int, zmq_msg_init, (zmq_msg_t *))                            \
    DO(int, zmq_msg_init_size, (zmq_msg_t *, size_t))               \
    DO(int, zmq_msg_recv, (zmq_msg_t *, void *, int))               \
    DO(int, zmq_msg_send, (zmq_msg_t *, void *, int))               \
    DO(int, zmq_msg_close, (zmq_msg_t *))                           \
    DO(void *, zmq_msg_data, (zmq_msg_t *))                         \
    DO(size_t, zmq_msg_size, (const zmq_msg_t *))                   \
    DO(int, zmq_msg_get, (const zmq_msg_t *, int))                  \
    DO(const char *, zmq_msg_gets, (const zmq_msg_t *, const char *))

/* Not in the module's state: a process has one libzmq that pyzmq calls. */
#define DECLARE(type, name, parameters) static type(*name) parameters;
FUNCTIONS(DECLARE)

enum {
    /* A frame of so many bytes is copied without the GIL. To release and take
     * the GIL costs a short message at the least, and up to a switch interval
     * (5 ms) where other threads want it too. */
    LARGE = 256 * 1024,
    /* Frames that are kept together. One portion is on the stack, so that most
     * messages need no memory from the heap. */
    PORTION = 16,
    /* Small frames that become bytes before other threads may run. */
    MANY = 4096,
};

typedef struct Portion {
    struct Portion *next;
    int first; /* frames before this one are closed */
    int count;
    zmq_msg_t frames[PORTION];
} Portion;

/* A message as libzmq has it. It must be dropped in the end. */
typedef struct {
    Py_ssize_t count;
    Portion head;
    Portion *last;
} Message;

typedef struct {
    PyObject *ZMQError;
    PyObject *ContextTerminated; /* pyzmq's for ETERM */
    PyObject *Socket; /* the base class of pyzmq's sockets, which is in C */
    PyObject *underlying; /* its property: the address of libzmq's socket */
} State;

typedef struct {
    PyObject_HEAD
    PyObject *raw;
    int has_begun; /* the routing id is sent, and the rest is not */
} Messages;


/* A message as libzmq has it. These run no Python code. */

static void
begin_message(Message *message)
{
    message->count = 0;
    message->head.next = NULL;
    message->head.first = message->head.count = 0;
    message->last = &message->head;
}

/* Return where the next frame goes, or NULL if there is no memory. */
static zmq_msg_t *
next_frame(Message *message)
{
    if (message->last->count == PORTION) {
        Portion *portion = PyMem_RawMalloc(sizeof *portion);
        if (portion == NULL) {
            return NULL;
        }
        portion->next = NULL;
        portion->first = portion->count = 0;
        message->last = message->last->next = portion;
    }
    return &message->last->frames[message->last->count];
}

static void
add_frame(Message *message)
{
    message->last->count++;
    message->count++;
}

static void
drop_message(Message *message)
{
    Portion *portion = &message->head;
    while (portion != NULL) {
        Portion *next = portion->next;
        while (portion->first < portion->count) {
            zmq_msg_close(&portion->frames[portion->first++]);
        }
        if (portion != &message->head) {
            PyMem_RawFree(portion);
        }
        portion = next;
    }
}

static int
read_frame(void *socket, zmq_msg_t *frame)
{
    zmq_msg_init(frame);
    while (zmq_msg_recv(frame, socket, ZMQ_DONTWAIT) < 0) {
        if (zmq_errno() != EINTR) {
            return zmq_errno(); /* an empty frame need not be closed */
        }
    }
    return 0;
}

/* Read and forget the rest of a message, so that the next one is not taken
 * for a part of it. */
static void
skip_frames(void *socket)
{
    zmq_msg_t frame;
    int more = 1;
    while (more && read_frame(socket, &frame) == 0) {
        more = zmq_msg_get(&frame, ZMQ_MORE);
        zmq_msg_close(&frame);
    }
}

/* Return 0, or an errno: EAGAIN if there is no message. libzmq has all frames
 * of a message or none, so an error after the first is of the socket. */
static int
read_message(void *socket, Message *message)
{
    zmq_msg_t *frame;
    do {
        frame = next_frame(message);
        if (frame == NULL) {
            skip_frames(socket);
            return ENOMEM;
        }
        int error = read_frame(socket, frame);
        if (error) {
            return error;
        }
        add_frame(message);
    } while (zmq_msg_get(frame, ZMQ_MORE));
    return 0;
}

/* Send the first frame that is left in a portion. Return 0 or an errno. */
static int
send_frame(void *socket, Portion *part, int more)
{
    zmq_msg_t *frame = &part->frames[part->first];
    while (zmq_msg_send(frame, socket, ZMQ_DONTWAIT | more) < 0) {
        if (zmq_errno() != EINTR) {
            return zmq_errno();
        }
    }
    part->first++; /* it is empty now, and need not be closed */
    return 0;
}

/* Send the frames that are left in a message. Return 0 or an errno. */
static int
send_frames(void *socket, Message *message)
{
    for (Portion *part = &message->head; part != NULL; part = part->next) {
        while (part->first < part->count) {
            int is_last = part == message->last
                          && part->first == part->count - 1;
            int error = send_frame(socket, part, is_last ? 0 : ZMQ_SNDMORE);
            if (error) {
                return error;
            }
        }
    }
    return 0;
}


/* Between libzmq's frames and bytes. No socket is in use here. */

/* Close a frame; return its content. */
static PyObject *
take_frame(zmq_msg_t *frame)
{
    const char *data = zmq_msg_data(frame);
    size_t size = zmq_msg_size(frame);
    PyObject *content;
    if (size < LARGE) {
        content = PyBytes_FromStringAndSize(data, (Py_ssize_t)size);
        zmq_msg_close(frame);
        return content;
    }
    content = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    Py_BEGIN_ALLOW_THREADS
    if (content != NULL) {
        memcpy(PyBytes_AS_STRING(content), data, size);
    }
    zmq_msg_close(frame); /* which gives the memory back, and takes time too */
    Py_END_ALLOW_THREADS
    return content;
}

/* Take the frames that are left in a message; return a list of bytes. */
static PyObject *
take_frames(Message *message)
{
    Py_ssize_t count = message->count - message->head.first;
    PyObject *frames = PyList_New(count);
    if (frames == NULL) {
        return NULL;
    }
    /* Until it is complete, other threads must not get it from the garbage
     * collector: they would read items that are NULL. */
    PyObject_GC_UnTrack(frames);
    Py_ssize_t taken = 0;
    for (Portion *part = &message->head; part != NULL; part = part->next) {
        while (part->first < part->count) {
            PyObject *content = take_frame(&part->frames[part->first++]);
            if (content == NULL) {
                Py_DECREF(frames);
                return NULL;
            }
            PyList_SET_ITEM(frames, taken, content);
            taken++;
            if (taken % MANY == 0) {
                Py_BEGIN_ALLOW_THREADS
                Py_END_ALLOW_THREADS
            }
        }
    }
    PyObject_GC_Track(frames);
    return frames;
}

/* Add a frame that has room for a bytes object. */
static int
add_room(Message *message, PyObject *content)
{
    zmq_msg_t *frame = next_frame(message);
    if (frame == NULL
        || zmq_msg_init_size(frame, (size_t)PyBytes_GET_SIZE(content)) < 0)
    {
        PyErr_NoMemory();
        return -1;
    }
    add_frame(message);
    return 0;
}

/* Fill a frame, given a bytes object to which the caller has a reference. */
static void
fill_frame(zmq_msg_t *frame, PyObject *content)
{
    size_t size = (size_t)PyBytes_GET_SIZE(content);
    if (size < LARGE) {
        memcpy(zmq_msg_data(frame), PyBytes_AS_STRING(content), size);
    }
    else {
        Py_BEGIN_ALLOW_THREADS
        memcpy(zmq_msg_data(frame), PyBytes_AS_STRING(content), size);
        Py_END_ALLOW_THREADS
    }
}

/* Fill the frames that are left in a message. */
static void
fill_frames(Message *message, PyObject *frames)
{
    Py_ssize_t filled = 0;
    for (Portion *part = &message->head; part != NULL; part = part->next) {
        for (int i = part->first; i < part->count; i++) {
            fill_frame(&part->frames[i], PyTuple_GET_ITEM(frames, filled));
            filled++;
        }
    }
}

/* Return what libzmq knows of a frame's connection: the descriptor, and the
 * properties of these names. */
static PyObject *
origin_of(const zmq_msg_t *frame, PyObject *names)
{
    Py_ssize_t count = PyTuple_GET_SIZE(names);
    PyObject *values = PyTuple_New(count);
    if (values == NULL) {
        return NULL;
    }
    /* As in `take_frames`: an error handler may be in Python. It need not be
     * tracked again, since it contains only str. */
    PyObject_GC_UnTrack(values);
    for (Py_ssize_t i = 0; i < count; i++) {
        const char *name = PyUnicode_AsUTF8(PyTuple_GET_ITEM(names, i));
        if (name == NULL) {
            goto error;
        }
        const char *value = zmq_msg_gets(frame, name);
        if (value == NULL) {
            value = "";
        }
        /* The client may have written it. */
        PyObject *text = PyUnicode_DecodeUTF8(
            value, (Py_ssize_t)strlen(value), "backslashreplace");
        if (text == NULL) {
            goto error;
        }
        PyTuple_SET_ITEM(values, i, text);
    }
    return Py_BuildValue("iN", zmq_msg_get(frame, ZMQ_SRCFD), values);

error:
    Py_DECREF(values);
    return NULL;
}


/* The type */

static PyObject *
raise_error(PyObject *self, int error)
{
    if (error == ENOMEM) {
        return PyErr_NoMemory();
    }
    State *state = PyType_GetModuleState(Py_TYPE(self));
    PyObject *type =
        error == ETERM ? state->ContextTerminated : state->ZMQError;
    PyObject *exception = PyObject_CallFunction(type, "i", error);
    if (exception != NULL) {
        PyErr_SetObject(type, exception);
        Py_DECREF(exception);
    }
    return NULL;
}

/* Set libzmq's socket, which is NULL if it is closed: libzmq refuses that with
 * ENOTSOCK. It is good until other Python code may run. */
static int
get_socket(PyObject *self, void **socket)
{
    State *state = PyType_GetModuleState(Py_TYPE(self));
    PyObject *raw = ((Messages *)self)->raw;
    /* As `raw.underlying`, without the search that takes most of the time. */
    descrgetfunc get = Py_TYPE(state->underlying)->tp_descr_get;
    PyObject *address = get(state->underlying, raw, (PyObject *)Py_TYPE(raw));
    if (address == NULL) {
        return -1;
    }
    *socket = PyLong_AsVoidPtr(address);
    Py_DECREF(address);
    return *socket == NULL && PyErr_Occurred() ? -1 : 0;
}

static PyObject *
receive(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    void *socket;
    if (get_socket(self, &socket) < 0) {
        return NULL;
    }
    Message message;
    begin_message(&message);
    int error = read_message(socket, &message);
    PyObject *frames = NULL;
    if (error == 0) {
        frames = take_frames(&message);
    }
    drop_message(&message);
    if (error == EAGAIN) {
        Py_RETURN_NONE;
    }
    return error ? raise_error(self, error) : frames;
}

/* Take a message that a ROUTER has received. */
static PyObject *
take_from(Message *message, PyObject *known, PyObject *names)
{
    PyObject *origin = NULL, *frames = NULL, *received = NULL;
    zmq_msg_t *head = message->head.frames;
    PyObject *routing_id = take_frame(&head[message->head.first++]);
    if (routing_id == NULL) {
        return NULL;
    }
    int is_known = PyDict_Contains(known, routing_id);
    if (is_known < 0) {
        goto done;
    }
    /* A ROUTER puts the routing id before at least one frame. */
    origin = is_known ? Py_NewRef(Py_None) : origin_of(&head[1], names);
    if (origin == NULL) {
        goto done;
    }
    frames = take_frames(message);
    if (frames != NULL) {
        received = PyTuple_Pack(3, routing_id, frames, origin);
    }

done:
    Py_DECREF(routing_id);
    Py_XDECREF(origin);
    Py_XDECREF(frames);
    return received;
}

static PyObject *
receive_from(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 || !PyDict_Check(args[0]) || !PyTuple_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError,
                        "receive_from takes a dict and a tuple");
        return NULL;
    }
    void *socket;
    if (get_socket(self, &socket) < 0) {
        return NULL;
    }
    Message message;
    begin_message(&message);
    int error = read_message(socket, &message);
    PyObject *received = NULL;
    if (error == 0 && message.count < 2) {
        error = EINVAL; /* the socket is not a ROUTER */
    }
    if (error == 0) {
        received = take_from(&message, args[0], args[1]);
    }
    drop_message(&message);
    if (error == EAGAIN) {
        Py_RETURN_NONE;
    }
    return error ? raise_error(self, error) : received;
}

/* Begin a message that has room for all frames, and has the routing id, if
 * there is one. So nothing can fail after the routing id is sent. */
static int
make_room(Message *message, PyObject *routing_id, PyObject *frames)
{
    Py_ssize_t count = PyTuple_GET_SIZE(frames);
    int is_sound = count > 0;
    if (routing_id != NULL) {
        is_sound = is_sound && PyBytes_Check(routing_id);
    }
    for (Py_ssize_t i = 0; is_sound && i < count; i++) {
        is_sound = PyBytes_Check(PyTuple_GET_ITEM(frames, i));
    }
    if (!is_sound) {
        PyErr_SetString(PyExc_TypeError,
                        "a message must be bytes, in one frame or more");
        return -1;
    }
    if (routing_id != NULL) {
        if (add_room(message, routing_id) < 0) {
            return -1;
        }
        fill_frame(message->head.frames, routing_id);
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        if (add_room(message, PyTuple_GET_ITEM(frames, i)) < 0) {
            return -1;
        }
    }
    return 0;
}

/* Send the routing id. Return 0, an errno if the ROUTER refuses the message, or
 * -1 with an exception. */
static int
send_routing_id(PyObject *self, Message *message)
{
    Messages *messages = (Messages *)self;
    void *socket;
    if (get_socket(self, &socket) < 0) {
        return -1;
    }
    int error = EBUSY;
    if (!messages->has_begun) {
        error = send_frame(socket, &message->head, ZMQ_SNDMORE);
        messages->has_begun = error == 0;
    }
    if (error == 0 || error == EAGAIN || error == EHOSTUNREACH) {
        return error;
    }
    raise_error(self, error);
    return -1;
}

/* Send the frames. Return 0, EAGAIN, or -1 with an exception. */
static int
send_content(PyObject *self, Message *message, int is_begun)
{
    Messages *messages = (Messages *)self;
    void *socket;
    if (get_socket(self, &socket) < 0) {
        return -1;
    }
    int error = EBUSY;
    if (messages->has_begun == is_begun) {
        error = send_frames(socket, message);
        messages->has_begun = 0;
    }
    /* A DEALER may lose its connection in the middle of a message, and then
     * forgets the part that it has. A ROUTER has accepted the message. */
    if (error == 0 || (error == EAGAIN && !is_begun)) {
        return error;
    }
    raise_error(self, error);
    return -1;
}

static PyObject *
send_message(PyObject *self, PyObject *routing_id, PyObject *sequence)
{
    /* Another thread may change a list while a large frame is copied. */
    PyObject *frames = PySequence_Tuple(sequence);
    if (frames == NULL) {
        return NULL;
    }
    Message message;
    begin_message(&message);
    int error = make_room(&message, routing_id, frames);
    if (error == 0 && routing_id != NULL) {
        error = send_routing_id(self, &message);
    }
    if (error == 0) {
        fill_frames(&message, frames);
        error = send_content(self, &message, routing_id != NULL);
    }
    drop_message(&message);
    Py_DECREF(frames); /* not before: it may run Python code */
    return error < 0 ? NULL : PyLong_FromLong(error);
}

static PyObject *
send(PyObject *self, PyObject *frames)
{
    return send_message(self, NULL, frames);
}

static PyObject *
send_to(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError,
                        "send_to takes a routing id and frames");
        return NULL;
    }
    return send_message(self, args[0], args[1]);
}

static PyObject *
readable(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    void *socket;
    if (get_socket(self, &socket) < 0) {
        return NULL;
    }
    int events;
    size_t size = sizeof events;
    while (zmq_getsockopt(socket, ZMQ_EVENTS, &events, &size) < 0) {
        if (zmq_errno() != EINTR) {
            return raise_error(self, zmq_errno());
        }
    }
    return PyBool_FromLong(events & ZMQ_POLLIN);
}

static PyObject *
close_socket(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyObject_CallMethod(((Messages *)self)->raw, "close", NULL);
}

static PyMethodDef methods[] = {
    {"receive", receive, METH_NOARGS, NULL},
    {"receive_from", (PyCFunction)(void (*)(void))receive_from, METH_FASTCALL,
     NULL},
    {"send", send, METH_O, NULL},
    {"send_to", (PyCFunction)(void (*)(void))send_to, METH_FASTCALL, NULL},
    {"readable", readable, METH_NOARGS, NULL},
    {"close", close_socket, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef members[] = {
    {"raw", T_OBJECT_EX, offsetof(Messages, raw), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyObject *
messages_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"", NULL};
    State *state = PyType_GetModuleState(type);
    PyObject *raw;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!:Messages", names,
                                     state->Socket, &raw)) {
        return NULL;
    }
    Messages *self = (Messages *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->raw = Py_NewRef(raw);
    void *socket;
    if (get_socket((PyObject *)self, &socket) < 0 || socket == NULL) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_ValueError, "the socket is closed");
        }
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

/* There is no tp_clear, so that `raw` is always there: a cycle leads through
 * the socket's attributes, which are cleared. */
static int
messages_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((Messages *)self)->raw);
    return 0;
}

static void
messages_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_XDECREF(((Messages *)self)->raw);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot type_slots[] = {
    {Py_tp_new, messages_new},
    {Py_tp_traverse, messages_traverse},
    {Py_tp_dealloc, messages_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_members, members},
    {0, NULL},
};

static PyType_Spec type_spec = {
    .name = "trioreq._transport._cmessages.Messages",
    .basicsize = sizeof(Messages),
    .flags = (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC
              | Py_TPFLAGS_IMMUTABLETYPE),
    .slots = type_slots,
};


/* libzmq */

static const char *
file_of(void *function)
{
    Dl_info info;
    return dladdr(function, &info) ? info.dli_fname : "an unknown file";
}

/* Find the function that pyzmq calls, given the library of its extension.
 *
 * The dynamic linker has looked for it in two places: among the libraries that
 * are global (the program's own, those in LD_PRELOAD, and those opened with
 * RTLD_GLOBAL), and then in the extension and what that was linked with, where
 * dlsym looks too. The first place only gains libraries, at its end. So if
 * nothing in it has the function now, or the same function, it was found in
 * the second. If another is there, it is unknown whether it was loaded
 * before pyzmq or after.
 */
static void *
find_function(void *library, const char *name)
{
    void *linked = dlsym(library, name);
    void *global = dlsym(RTLD_DEFAULT, name);
    if (linked == NULL) {
        PyErr_Format(PyExc_ImportError,
                     "pyzmq's extension does not share its libzmq: %s is not "
                     "to be found", name);
        return NULL;
    }
    if (global != NULL && global != linked) {
        PyErr_Format(PyExc_ImportError,
                     "pyzmq may call either of two libzmq: %s is in %s and in "
                     "%s", name, file_of(linked), file_of(global));
        return NULL;
    }
    return linked;
}

/* Return the library of the extension that the sockets are implemented in. */
static void *
open_backend(PyObject *Socket)
{
    void *library = NULL;
    PyObject *module = NULL, *file = NULL, *path = NULL;
    PyObject *name = PyObject_GetAttrString(Socket, "__module__");
    if (name == NULL) {
        return NULL;
    }
    module = PyImport_Import(name);
    if (module == NULL) {
        goto done;
    }
    file = PyObject_GetAttrString(module, "__file__");
    if (file == NULL || !PyUnicode_FSConverter(file, &path)) {
        goto done;
    }
    /* It is never closed: its functions are called from now on. */
    library = dlopen(PyBytes_AS_STRING(path), RTLD_NOW | RTLD_NOLOAD);
    if (library == NULL) {
        PyErr_Format(PyExc_ImportError, "pyzmq's %U is not an extension in C",
                     name);
    }

done:
    Py_DECREF(name);
    Py_XDECREF(module);
    Py_XDECREF(file);
    Py_XDECREF(path);
    return library;
}

/* Compare with the version that pyzmq gets when it calls its libzmq. */
static int
check_version(PyObject *backend)
{
    int major, minor, patch, is_same = 0;
    zmq_version(&major, &minor, &patch);
    PyObject *ours = Py_BuildValue("iii", major, minor, patch);
    PyObject *theirs = PyObject_CallMethod(backend, "zmq_version_info", NULL);
    if (ours != NULL && theirs != NULL) {
        is_same = PyObject_RichCompareBool(ours, theirs, Py_EQ);
        if (is_same == 0) {
            PyErr_Format(PyExc_ImportError,
                         "pyzmq calls libzmq %R, and %R was found", theirs,
                         ours);
        }
    }
    Py_XDECREF(ours);
    Py_XDECREF(theirs);
    return is_same == 1 ? 0 : -1;
}

static int
find_libzmq(PyObject *backend, PyObject *Socket)
{
    void *library = open_backend(Socket);
    if (library == NULL) {
        return -1;
    }
#define FIND(type, name, parameters)                                \
    *(void **)&name = find_function(library, #name);                \
    if (name == NULL) {                                             \
        return -1;                                                  \
    }
    FUNCTIONS(FIND)
    return check_version(backend);
}


/* The module */

static int
get_attribute(PyObject *object, const char *name, PyObject **attribute)
{
    *attribute = PyObject_GetAttrString(object, name);
    return *attribute == NULL ? -1 : 0;
}

/* Set what is needed of pyzmq. */
static int
find_pyzmq(State *state, PyObject *zmq, PyObject *backend)
{
    if (get_attribute(zmq, "ZMQError", &state->ZMQError) < 0
        || get_attribute(zmq, "ContextTerminated",
                         &state->ContextTerminated) < 0
        || get_attribute(backend, "Socket", &state->Socket) < 0
        || find_libzmq(backend, state->Socket) < 0
        || get_attribute(state->Socket, "underlying", &state->underlying) < 0)
    {
        return -1;
    }
    if (!Py_IS_TYPE(state->underlying, &PyGetSetDescr_Type)) {
        PyErr_SetString(PyExc_ImportError,
                        "pyzmq's Socket.underlying is not a property in C");
        return -1;
    }
    return 0;
}

/* Let a pyzmq that is not as expected be an ImportError, so that the twin in
 * Python is used. */
static void
raise_import_error(void)
{
    PyObject *type, *value, *traceback;
    if (PyErr_ExceptionMatches(PyExc_ImportError)
        || PyErr_ExceptionMatches(PyExc_MemoryError)
        || !PyErr_ExceptionMatches(PyExc_Exception))
    {
        return;
    }
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_Format(PyExc_ImportError, "pyzmq is not as expected: %S", value);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
}

static int
module_exec(PyObject *module)
{
    PyObject *backend = NULL;
    PyObject *zmq = PyImport_ImportModule("zmq");
    if (zmq != NULL) {
        backend = PyImport_ImportModule("zmq.backend");
    }
    int found = -1;
    if (backend != NULL) {
        found = find_pyzmq(PyModule_GetState(module), zmq, backend);
    }
    Py_XDECREF(zmq);
    Py_XDECREF(backend);
    if (found < 0) {
        raise_import_error();
        return -1;
    }
    PyObject *type = PyType_FromModuleAndSpec(module, &type_spec, NULL);
    if (type == NULL) {
        return -1;
    }
    int added = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return added;
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->ZMQError);
    Py_VISIT(state->ContextTerminated);
    Py_VISIT(state->Socket);
    Py_VISIT(state->underlying);
    return 0;
}

/* There is no m_clear, so that the state is there as long as the type is, which
 * refers to the module: nothing in the state leads back to it. */
static void
module_free(void *module)
{
    State *state = PyModule_GetState(module);
    Py_XDECREF(state->ZMQError);
    Py_XDECREF(state->ContextTerminated);
    Py_XDECREF(state->Socket);
    Py_XDECREF(state->underlying);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "trioreq._transport._cmessages",
    .m_size = sizeof(State),
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_free = module_free,
};

PyMODINIT_FUNC
PyInit__cmessages(void)
{
    return PyModuleDef_Init(&module_definition);
}

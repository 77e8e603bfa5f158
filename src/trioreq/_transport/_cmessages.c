/* Whole messages from and to a zmq socket: `_messages.PyMessages`, with one call of Python's for a
 * message and not one for each of its frames.
 *
 * It calls the libzmq that pyzmq has loaded, wherever that is. Nothing here waits, so Python's lock
 * is kept: it costs more to let go of than a message. Only a message of very many frames lets other
 * threads have it now and then.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <structmember.h>

/* From libzmq's interface, the same in all of 4.x that have these functions. */
typedef union {
    unsigned char content[64];
    void *aligned;
} Frame;
enum { MORE = 1, SRCFD = 2, DONTWAIT = 1, SNDMORE = 2, EVENTS = 15, POLLIN = 1 };

enum { MANY = 4096 }; /* frames, in about a millisecond */

#define FUNCTIONS(DO)                                             \
    DO(void, zmq_version, (int *, int *, int *))                  \
    DO(int, zmq_errno, (void))                                    \
    DO(int, zmq_getsockopt, (void *, int, void *, size_t *))      \
    DO(int, zmq_msg_init, (Frame *))                              \
    DO(int, zmq_msg_recv, (Frame *, void *, int))                 \
    DO(int, zmq_msg_close, (Frame *))                             \
    DO(void *, zmq_msg_data, (Frame *))                           \
    DO(size_t, zmq_msg_size, (const Frame *))                     \
    DO(int, zmq_msg_get, (const Frame *, int))                    \
    DO(const char *, zmq_msg_gets, (const Frame *, const char *)) \
    DO(int, zmq_send, (void *, const void *, size_t, int))

#define DECLARE(type, name, parameters) static type(*name) parameters;
FUNCTIONS(DECLARE)

static PyObject *ZMQError;

typedef struct {
    PyObject_HEAD
    PyObject *raw; /* pyzmq's socket, which owns libzmq's */
    void *socket;  /* libzmq's; NULL when `close` has closed it, as nobody else may */
} Messages;

static PyObject *failed(int error)
{
    PyObject *exception = PyObject_CallFunction(ZMQError, "i", error);
    if (exception != NULL)
        PyErr_SetObject(ZMQError, exception);
    Py_XDECREF(exception);
    return NULL;
}

/* Read a frame, which the caller closes; returns -1 if there is none, or on an error. */
static int read_frame(Messages *self, Frame *frame)
{
    zmq_msg_init(frame);
    while (zmq_msg_recv(frame, self->socket, DONTWAIT) < 0)
        if (zmq_errno() != EINTR)
            return -1; /* an empty frame needs no closing */
    return 0;
}

/* The content of a frame, which is closed. */
static PyObject *taken(Frame *frame)
{
    PyObject *content = PyBytes_FromStringAndSize(
        zmq_msg_data(frame), (Py_ssize_t)zmq_msg_size(frame));
    zmq_msg_close(frame);
    return content;
}

/* The contents of a frame and of all that follow it in its message. */
static PyObject *taken_from(Messages *self, Frame *frame)
{
    PyObject *frames = PyList_New(0);
    for (;;) {
        int more = zmq_msg_get(frame, MORE);
        PyObject *content = taken(frame);
        if (frames == NULL || content == NULL || PyList_Append(frames, content) < 0) {
            Py_XDECREF(content);
            break;
        }
        Py_DECREF(content);
        if (!more)
            return frames;
        if (PyList_GET_SIZE(frames) % MANY == 0) {
            Py_BEGIN_ALLOW_THREADS
            Py_END_ALLOW_THREADS
        }
        if (read_frame(self, frame) < 0) {
            failed(zmq_errno());
            break;
        }
    }
    Py_XDECREF(frames);
    return NULL;
}

/* What libzmq tells of where a frame came from: the descriptor, and some properties. */
static PyObject *origin_of(const Frame *frame, PyObject *names)
{
    PyObject *values = PyTuple_New(PyTuple_GET_SIZE(names));
    for (Py_ssize_t i = 0; values != NULL && i < PyTuple_GET_SIZE(names); i++) {
        const char *name = PyUnicode_AsUTF8(PyTuple_GET_ITEM(names, i));
        const char *value = name == NULL ? NULL : zmq_msg_gets(frame, name);
        if (name != NULL && value == NULL)
            value = "";
        PyObject *text = value == NULL
            ? NULL : PyUnicode_DecodeUTF8(value, (Py_ssize_t)strlen(value), "backslashreplace");
        if (text == NULL)
            Py_CLEAR(values);
        else
            PyTuple_SET_ITEM(values, i, text);
    }
    return values == NULL ? NULL : Py_BuildValue("iN", zmq_msg_get(frame, SRCFD), values);
}

static PyObject *nothing_or_failed(void)
{
    if (zmq_errno() != EAGAIN)
        return failed(zmq_errno());
    Py_RETURN_NONE;
}

static PyObject *receive(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    Messages *self = (Messages *)object;
    Frame frame;
    if (read_frame(self, &frame) < 0)
        return nothing_or_failed();
    return taken_from(self, &frame);
}

static PyObject *receive_from(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    Messages *self = (Messages *)object;
    if (count != 2 || !PyDict_Check(args[0]) || !PyTuple_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "receive_from takes a dict and a tuple");
        return NULL;
    }
    Frame frame;
    if (read_frame(self, &frame) < 0)
        return nothing_or_failed();
    PyObject *routing_id = taken(&frame);
    if (routing_id == NULL)
        return NULL;
    if (read_frame(self, &frame) < 0) {
        int error = zmq_errno();
        Py_DECREF(routing_id);
        return failed(error);
    }
    int is_known = PyDict_Contains(args[0], routing_id);
    PyObject *origin = is_known ? Py_NewRef(Py_None) : origin_of(&frame, args[1]);
    PyObject *frames = NULL, *message = NULL;
    if (is_known < 0 || origin == NULL)
        zmq_msg_close(&frame);
    else
        frames = taken_from(self, &frame);
    if (frames != NULL)
        message = PyTuple_Pack(3, routing_id, frames, origin);
    Py_DECREF(routing_id);
    Py_XDECREF(frames);
    Py_XDECREF(origin);
    return message;
}

static int send_frame(Messages *self, PyObject *frame, int flags)
{
    size_t size = (size_t)PyBytes_GET_SIZE(frame);
    while (zmq_send(self->socket, PyBytes_AS_STRING(frame), size, flags) < 0)
        if (zmq_errno() != EINTR)
            return -1;
    return 0;
}

/* Send a routing id, if there is one, and the frames. */
static PyObject *send_message(Messages *self, PyObject *routing_id, PyObject *sequence)
{
    PyObject *frames = PySequence_Fast(sequence, "frames are a sequence of bytes");
    if (frames == NULL)
        return NULL;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(frames);
    PyObject **frame = PySequence_Fast_ITEMS(frames);
    int sound = count > 0 && (routing_id == NULL || PyBytes_Check(routing_id));
    for (Py_ssize_t i = 0; sound && i < count; i++)
        sound = PyBytes_Check(frame[i]);
    if (!sound) {
        Py_DECREF(frames);
        PyErr_SetString(PyExc_TypeError, "a message is some bytes, and at least one frame of them");
        return NULL;
    }
    int error = 0, begun = 0;
    for (Py_ssize_t i = routing_id == NULL ? 0 : -1; !error && i < count; i++) {
        int flags = DONTWAIT | (i < count - 1 ? SNDMORE : 0);
        if (send_frame(self, i < 0 ? routing_id : frame[i], flags) < 0)
            error = zmq_errno();
        else
            begun = 1;
    }
    Py_DECREF(frames);
    /* A DEALER may lose its connection in between, and forgets what it has of the message. */
    int expected = error == EAGAIN ? routing_id == NULL || !begun : error == EHOSTUNREACH && !begun;
    return error && !expected ? failed(error) : PyLong_FromLong(error);
}

static PyObject *send_frames(PyObject *self, PyObject *frames)
{
    return send_message((Messages *)self, NULL, frames);
}

static PyObject *send_to(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "send_to takes a routing id and frames");
        return NULL;
    }
    return send_message((Messages *)self, args[0], args[1]);
}

static PyObject *readable(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    int events;
    size_t size = sizeof events;
    while (zmq_getsockopt(((Messages *)self)->socket, EVENTS, &events, &size) < 0)
        if (zmq_errno() != EINTR)
            return failed(zmq_errno());
    return PyBool_FromLong(events & POLLIN);
}

static PyObject *close_socket(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    ((Messages *)self)->socket = NULL;
    return PyObject_CallMethod(((Messages *)self)->raw, "close", NULL);
}

static PyMethodDef methods[] = {
    {"receive", receive, METH_NOARGS, NULL},
    {"receive_from", (PyCFunction)(void (*)(void))receive_from, METH_FASTCALL, NULL},
    {"send", send_frames, METH_O, NULL},
    {"send_to", (PyCFunction)(void (*)(void))send_to, METH_FASTCALL, NULL},
    {"readable", readable, METH_NOARGS, NULL},
    {"close", close_socket, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef members[] = {
    {"raw", T_OBJECT_EX, offsetof(Messages, raw), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyObject *new_messages(PyTypeObject *type, PyObject *args, PyObject *names)
{
    PyObject *raw;
    if (names != NULL || !PyArg_ParseTuple(args, "O", &raw))
        return names == NULL ? NULL : PyErr_Format(PyExc_TypeError, "a socket, and no names");
    PyObject *address = PyObject_GetAttrString(raw, "underlying");
    void *socket = address == NULL ? NULL : PyLong_AsVoidPtr(address);
    Py_XDECREF(address);
    if (socket == NULL) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "the socket is closed");
        return NULL;
    }
    Messages *self = (Messages *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->raw = Py_NewRef(raw);
        self->socket = socket;
    }
    return (PyObject *)self;
}

static void free_messages(PyObject *self)
{
    Py_DECREF(((Messages *)self)->raw);
    Py_TYPE(self)->tp_free(self);
}

static PyTypeObject type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "trioreq._transport._cmessages.Messages",
    .tp_basicsize = sizeof(Messages),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = new_messages,
    .tp_dealloc = free_messages,
    .tp_methods = methods,
    .tp_members = members,
};

/* Find libzmq's functions in pyzmq's library, or in what that was linked with. */
static int find_functions(PyObject *path)
{
    void *library = dlopen(PyBytes_AS_STRING(path), RTLD_NOW | RTLD_NOLOAD);
    if (library == NULL)
        return -1;
#define FIND(type, name, parameters)                    \
    if ((*(void **)&name = dlsym(library, #name)) == NULL) \
        return -1;
    FUNCTIONS(FIND)
    return 0;
}

/* What is found must be what pyzmq itself calls, which another library may stand before. */
static int is_pyzmqs(PyObject *version)
{
    int major, minor, patch, pyzmqs[3];
    if (!PyArg_ParseTuple(version, "iii", &pyzmqs[0], &pyzmqs[1], &pyzmqs[2]))
        return 0;
    zmq_version(&major, &minor, &patch);
    return major == pyzmqs[0] && minor == pyzmqs[1] && patch == pyzmqs[2];
}

static int find_libzmq(PyObject *zmq)
{
    PyObject *pyzmq = PyImport_ImportModule("zmq.backend.cython._zmq");
    PyObject *file = pyzmq == NULL ? NULL : PyObject_GetAttrString(pyzmq, "__file__");
    PyObject *path = file == NULL ? NULL : PyUnicode_EncodeFSDefault(file);
    PyObject *version = path == NULL ? NULL : PyObject_CallMethod(zmq, "zmq_version_info", NULL);
    int found = version != NULL && find_functions(path) == 0 && is_pyzmqs(version);
    Py_XDECREF(version);
    Py_XDECREF(path);
    Py_XDECREF(file);
    Py_XDECREF(pyzmq);
    if (found)
        return 0;
    PyErr_SetString(PyExc_ImportError, "the libzmq that pyzmq calls is not to be found beside it");
    return -1;
}

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "trioreq._transport._cmessages",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit__cmessages(void)
{
    PyObject *zmq = PyImport_ImportModule("zmq");
    ZMQError = zmq == NULL ? NULL : PyObject_GetAttrString(zmq, "ZMQError");
    int found = ZMQError != NULL && find_libzmq(zmq) == 0;
    Py_XDECREF(zmq);
    PyObject *module = found ? PyModule_Create(&definition) : NULL;
    if (module != NULL && PyModule_AddType(module, &type) < 0)
        Py_CLEAR(module);
    return module;
}

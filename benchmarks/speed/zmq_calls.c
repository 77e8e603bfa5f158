/* Counts the calls of libzmq that a process makes.
 *
 * Preloaded (LD_PRELOAD), it stands before libzmq, which $LIBZMQ names, and passes each call on.
 * `zmq_calls` is the count.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdlib.h>

long zmq_calls;

static void *find(const char *name)
{
    static void *libzmq;
    if (libzmq == NULL)
        libzmq = dlopen(getenv("LIBZMQ"), RTLD_LAZY);
    void *found = libzmq ? dlsym(libzmq, name) : NULL;
    if (found == NULL)
        abort();
    return found;
}

#define COUNTED(type, name, parameters, arguments)          \
    type name parameters                                    \
    {                                                       \
        static type(*real) parameters;                      \
        if (real == NULL)                                   \
            *(void **)&real = find(#name);                  \
        __atomic_add_fetch(&zmq_calls, 1, __ATOMIC_RELAXED); \
        return real arguments;                              \
    }

COUNTED(int, zmq_send, (void *s, const void *data, size_t size, int flags), (s, data, size, flags))
COUNTED(int, zmq_recv, (void *s, void *data, size_t size, int flags), (s, data, size, flags))
COUNTED(int, zmq_msg_send, (void *message, void *s, int flags), (message, s, flags))
COUNTED(int, zmq_msg_recv, (void *message, void *s, int flags), (message, s, flags))
COUNTED(int, zmq_getsockopt, (void *s, int option, void *value, size_t *size),
        (s, option, value, size))
COUNTED(int, zmq_poll, (void *items, int count, long timeout), (items, count, timeout))
COUNTED(int, zmq_msg_get, (const void *message, int property), (message, property))
COUNTED(const char *, zmq_msg_gets, (const void *message, const char *name), (message, name))

// Sends one request to a server: ask ENDPOINT BODY MILLISECONDS
//
// cc -o ask ask.c -lzmq

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

static const char MARK[] = "trioreq-error";  // the first frame of an error reply

static int is_mark(zmq_msg_t *frame) {
    return zmq_msg_size(frame) == strlen(MARK) &&
           memcmp(zmq_msg_data(frame), MARK, strlen(MARK)) == 0;
}

// Prints each frame of the reply on a line. Returns 0 for a reply, 1 for an error, 3 for a timeout.
static int receive(void *socket) {
    FILE *output = stdout;
    int first = 1, more = 1;
    while (more) {
        zmq_msg_t frame;
        zmq_msg_init(&frame);
        if (zmq_msg_recv(&frame, socket, 0) < 0) {
            fprintf(stderr, "no reply: %s\n", zmq_strerror(errno));
            zmq_msg_close(&frame);
            return 3;
        }
        more = zmq_msg_more(&frame);
        if (first && more && is_mark(&frame)) {
            output = stderr;  // the code and the text follow
        } else {
            fwrite(zmq_msg_data(&frame), 1, zmq_msg_size(&frame), output);
            fputc('\n', output);
        }
        zmq_msg_close(&frame);
        first = 0;
    }
    return output == stdout ? 0 : 1;
}

int main(int count, char *arguments[]) {
    if (count != 4) {
        fprintf(stderr, "usage: %s ENDPOINT BODY MILLISECONDS\n", arguments[0]);
        return 2;
    }
    const char *endpoint = arguments[1], *body = arguments[2];
    int timeout = atoi(arguments[3]), linger = 0;

    void *context = zmq_ctx_new();
    void *socket = zmq_socket(context, ZMQ_REQ);
    zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(socket, ZMQ_RCVTIMEO, &timeout, sizeof timeout);
    int code = 2;
    if (zmq_connect(socket, endpoint) == 0 && zmq_send(socket, body, strlen(body), 0) >= 0) {
        code = receive(socket);
    } else {
        fprintf(stderr, "%s: %s\n", endpoint, zmq_strerror(errno));
    }
    zmq_close(socket);  // after a timeout this cancels the work at the server
    zmq_ctx_term(context);
    return code;
}

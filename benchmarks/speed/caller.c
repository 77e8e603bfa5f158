/* A client that asks once and then only waits: `caller PROTOCOL ADDRESS`.
 *
 * It is made to be killed. It is small, so that the kernel closes its connection at once: what a
 * larger process has to give back first would be a part of every figure. PROTOCOL is `bare` (a
 * byte), `zmtp` (as a REQ, ZMTP 3.0, NULL) or `http2` (a unary call of gRPC to /benchmark/wait).
 * ADDRESS is a port on 127.0.0.1, or the path of a socket.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int connection;

static void check(int success, const char *what)
{
    if (!success) {
        perror(what);
        exit(1);
    }
}

static void say(const void *data, size_t size)
{
    check(send(connection, data, size, MSG_NOSIGNAL) == (ssize_t)size, "caller: send");
}

static void hear(void *data, size_t size)
{
    check(recv(connection, data, size, MSG_WAITALL) == (ssize_t)size, "caller: recv");
}

static void dial(const char *address)
{
    if (address[0] == '/') {
        struct sockaddr_un path = {.sun_family = AF_UNIX};
        strncpy(path.sun_path, address, sizeof path.sun_path - 1);
        connection = socket(AF_UNIX, SOCK_STREAM, 0);
        check(!connect(connection, (struct sockaddr *)&path, sizeof path), "caller: connect");
    } else {
        struct sockaddr_in port = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(address))};
        port.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        connection = socket(AF_INET, SOCK_STREAM, 0);
        check(!connect(connection, (struct sockaddr *)&port, sizeof port), "caller: connect");
    }
}

static void ask_zmtp(void)
{
    static const uint8_t greeting[64] = {0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 0,
                                         'N', 'U', 'L', 'L'};
    static const char ready[] = "\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03REQ";
    uint8_t heard[256];
    say(greeting, sizeof greeting);
    hear(heard, sizeof greeting);
    say(ready, sizeof ready - 1);
    hear(heard, 2); /* flags and length of the other's READY */
    hear(heard + 2, heard[1]);
    say("\x01\0\0\x01x", 5);
}

static size_t literal(char *to, const char *name, const char *value)
{
    size_t size = 0;
    to[size++] = 0; /* HPACK: a literal that is not indexed, with a new name */
    to[size++] = (char)strlen(name);
    size += (size_t)sprintf(to + size, "%s", name);
    to[size++] = (char)strlen(value);
    return size + (size_t)sprintf(to + size, "%s", value);
}

static void say_frame(int type, int flags, int stream, const char *payload, size_t size)
{
    char head[9] = {(char)(size >> 16), (char)(size >> 8), (char)size, (char)type, (char)flags,
                    0, 0, 0, (char)stream};
    say(head, sizeof head);
    say(payload, size);
}

static void ask_http2(void)
{
    enum { DATA = 0, HEADERS = 1, SETTINGS = 4, END_STREAM = 1, END_HEADERS = 4 };
    char headers[512];
    size_t size = literal(headers, ":method", "POST");
    size += literal(headers + size, ":scheme", "http");
    size += literal(headers + size, ":path", "/benchmark/wait");
    size += literal(headers + size, ":authority", "localhost");
    size += literal(headers + size, "te", "trailers");
    size += literal(headers + size, "content-type", "application/grpc");
    say("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
    say_frame(SETTINGS, 0, 0, "", 0);
    say_frame(HEADERS, END_HEADERS, 1, headers, size);
    say_frame(DATA, END_STREAM, 1, "\0\0\0\0\x01x", 6); /* not compressed, one byte */
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dial(argv[2]);
    if (!strcmp(argv[1], "zmtp"))
        ask_zmtp();
    else if (!strcmp(argv[1], "http2"))
        ask_http2();
    else
        say("x", 1);
    char heard[4096];
    while (recv(connection, heard, sizeof heard, 0) > 0)
        continue;
    return 1; /* the server has closed, which it should not */
}

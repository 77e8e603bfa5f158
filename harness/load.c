/* A load generator for request/reply servers: one thread, and no messaging library.
 *
 * It speaks ZMTP 3.0 (ZeroMQ RFC 23, the NULL mechanism) as a DEALER that asks REP-style servers,
 * or SP over tcp (nanomsg's REQ), so that what it costs is small and the same for every server.
 *
 * A client is ready when its first request has been answered; the measurement begins when all
 * clients are. Then, by --mode:
 *
 *   closed   each of the first --speakers clients keeps --in-flight requests under way
 *   open     requests fall due at --rate a second, whatever the server does, and go to the
 *            speakers in turn; a latency counts from when the request was due, not from when it
 *            was sent, so a server that stalls does not hide the requests that it held up
 *   connect  each client leaves when it is ready, and comes back; a latency is the time from
 *            connect() to the first reply
 *   hold     nothing: the clients stay until standard input ends
 *   wait     as hold, but a client is ready once it has asked: its reply need not come
 *
 * A request's body begins with its number and a serial; a reply counts only if it is as long as
 * the request, carries both, and came on the connection that asked. The result is one line of
 * JSON on standard output. `hold` and `wait` print their line when all clients are ready.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { HANDSHAKES = 32 };    /* clients that connect at the same time */
enum { PATIENCE_S = 5 };     /* how long a silent server is waited for */
enum { ID_BYTES = 8 };       /* a request's number and its serial */
enum { CLOSED, OPEN, CONNECT, HOLD, WAIT };

static const char *const mode_names[] = {"closed", "open", "connect", "hold", "wait"};

static struct {
    int port, mode, cpu;
    bool sp;
    size_t clients, speakers, in_flight, bytes;
    double warmup, seconds, rate;
} options = {.cpu = -1, .clients = 1, .in_flight = 1, .bytes = 32, .warmup = 0.2, .seconds = 1};

struct request {
    uint32_t serial;
    bool busy;
    size_t asker; /* a client, or the next free request */
    uint64_t since;
};

struct client {
    int fd;
    bool ready, awaits_writing;
    size_t greeting_left;
    uint64_t connecting_since;
    /* what is to be written */
    uint8_t *out;
    size_t out_begin, out_end, out_room;
    /* the frame that is being read */
    uint8_t head[9], start[64];
    size_t head_have, start_have;
    uint64_t length, left;
};

static struct client *clients;
static struct request *requests;
static size_t requests_room, free_request = SIZE_MAX, outstanding;
static size_t opened, ready, silent_turns;
static uint64_t measure_begin = UINT64_MAX, measure_end = UINT64_MAX;
static uint64_t answered_count, errors;
static uint64_t *latencies;
static size_t latencies_room;
static int epoll;
static uint8_t *filler;

static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

static void *grown(void *memory, size_t count, size_t size)
{
    memory = reallocarray(memory, count, size);
    if (memory == NULL)
        fail("out of memory");
    return memory;
}

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void put_big_endian(uint8_t *to, uint64_t value, int bytes)
{
    while (bytes--) {
        to[bytes] = (uint8_t)value;
        value >>= 8;
    }
}

static uint64_t big_endian(const uint8_t *from, int bytes)
{
    uint64_t value = 0;
    while (bytes--)
        value = value << 8 | *from++;
    return value;
}

/* Writing. */

static void append(struct client *client, const void *data, size_t size)
{
    if (client->out_begin == client->out_end)
        client->out_begin = client->out_end = 0;
    if (client->out_end + size > client->out_room) {
        client->out_room = 2 * (client->out_end + size);
        client->out = grown(client->out, client->out_room, 1);
    }
    memcpy(client->out + client->out_end, data, size);
    client->out_end += size;
}

static void watch(struct client *client, int operation)
{
    bool pending = client->out_begin < client->out_end;
    struct epoll_event event = {
        .events = EPOLLIN | (pending ? EPOLLOUT : 0),
        .data.u64 = (uint64_t)(client - clients),
    };
    client->awaits_writing = pending;
    if (epoll_ctl(epoll, operation, client->fd, &event))
        fail("epoll_ctl: %s", strerror(errno));
}

static void flush(struct client *client)
{
    while (client->out_begin < client->out_end) {
        ssize_t sent = send(client->fd, client->out + client->out_begin,
                            client->out_end - client->out_begin, MSG_NOSIGNAL);
        if (sent < 0 && (errno == EAGAIN || errno == ENOTCONN))
            break;
        if (sent < 0)
            fail("send: %s", strerror(errno));
        client->out_begin += (size_t)sent;
    }
    if (client->awaits_writing != (client->out_begin < client->out_end))
        watch(client, EPOLL_CTL_MOD);
}

/* The two protocols. */

enum { MORE = 1, LONG = 2, COMMAND = 4 }; /* flags of a ZMTP frame */

static void append_greeting(struct client *client)
{
    static const uint8_t zmtp[64] = {0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 0, 'N', 'U', 'L', 'L'};
    static const uint8_t sp[8] = {0, 'S', 'P', 0, 0, 0x30, 0, 0};
    client->greeting_left = options.sp ? sizeof sp : sizeof zmtp;
    append(client, options.sp ? sp : zmtp, client->greeting_left);
}

static void append_ready(struct client *client)
{
    static const char ready_command[] = "\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06" "DEALER";
    append(client, ready_command, sizeof ready_command - 1);
}

static void append_request(struct client *client, const uint8_t id[ID_BYTES])
{
    uint8_t head[12];
    size_t size = 0;
    if (options.sp) { /* the length of all, and a request id, which has its first bit set */
        put_big_endian(head, options.bytes + 4, 8);
        put_big_endian(head + 8, 1u << 31 | big_endian(id, 4), 4);
        size = 12;
    } else { /* an empty frame, and the body's */
        head[size++] = MORE;
        head[size++] = 0;
        head[size++] = options.bytes > 255 ? LONG : 0;
        int width = options.bytes > 255 ? 8 : 1;
        put_big_endian(head + size, options.bytes, width);
        size += (size_t)width;
    }
    append(client, head, size);
    append(client, id, ID_BYTES);
    append(client, filler, options.bytes - ID_BYTES);
}

/* Requests. */

static void ask(size_t asker, uint64_t since)
{
    if (free_request == SIZE_MAX) {
        size_t room = requests_room ? 2 * requests_room : 64;
        requests = grown(requests, room, sizeof *requests);
        for (size_t i = requests_room; i < room; i++)
            requests[i] = (struct request){.asker = i + 1 < room ? i + 1 : SIZE_MAX};
        free_request = requests_room;
        requests_room = room;
    }
    size_t number = free_request;
    struct request *request = &requests[number];
    free_request = request->asker;
    *request = (struct request){request->serial + 1, true, asker, since};
    outstanding++;
    uint8_t id[ID_BYTES];
    put_big_endian(id, number, 4);
    put_big_endian(id + 4, request->serial, 4);
    append_request(&clients[asker], id);
}

static void record(uint64_t latency)
{
    if (answered_count == latencies_room) {
        latencies_room = latencies_room ? 2 * latencies_room : 1 << 16;
        latencies = grown(latencies, latencies_room, sizeof *latencies);
    }
    latencies[answered_count++] = latency;
}

static void open_client(size_t number)
{
    struct client *client = &clients[number];
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons((uint16_t)options.port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    client->ready = false;
    client->out_begin = client->out_end = client->head_have = client->start_have = 0;
    client->left = 0;
    client->connecting_since = now();
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (client->fd < 0)
        fail("client %zu: %s", number, strerror(errno));
    int on = 1;
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (options.mode == CONNECT) { /* who leaves keeps its port for a while: use many addresses */
        static uint32_t turn;
        struct sockaddr_in source = {
            .sin_family = AF_INET,
            .sin_addr.s_addr = htonl(INADDR_LOOPBACK + (1 + turn++ % 250)),
        };
        setsockopt(client->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
        if (bind(client->fd, (struct sockaddr *)&source, sizeof source))
            fail("bind: %s", strerror(errno));
    }
    if (connect(client->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS)
        fail("connect: %s", strerror(errno));
    append_greeting(client);
    watch(client, EPOLL_CTL_ADD);
}

static void close_client(struct client *client)
{
    close(client->fd); /* which takes it out of the epoll set too */
    client->fd = -1;
}

static void begin_measuring(uint64_t t)
{
    measure_begin = t + (uint64_t)(options.warmup * 1e9);
    measure_end = measure_begin + (uint64_t)(options.seconds * 1e9);
}

/* The client's first request has been answered. */
static void became_ready(size_t number, uint64_t t)
{
    struct client *client = &clients[number];
    client->ready = true;
    if (options.mode == CONNECT) {
        if (measure_begin == UINT64_MAX)
            begin_measuring(t);
        if (t >= measure_begin && t < measure_end)
            record(t - client->connecting_since);
        close_client(client);
        if (t < measure_end)
            open_client(number);
        return;
    }
    ready++;
    if (opened < options.clients)
        open_client(opened++);
    if (ready < options.clients)
        return;
    begin_measuring(t);
    if (options.mode == CLOSED)
        for (size_t i = 0; i < options.speakers; i++) {
            for (size_t k = 0; k < options.in_flight; k++)
                ask(i, t);
            flush(&clients[i]);
        }
}

static void got_reply(size_t number, uint64_t length, const uint8_t *id, uint64_t t)
{
    uint64_t which = length == options.bytes ? big_endian(id, 4) : UINT64_MAX;
    struct request *request = which < requests_room ? &requests[which] : NULL;
    if (request == NULL || !request->busy || request->asker != number ||
        request->serial != big_endian(id + 4, 4)) {
        errors++;
        return;
    }
    uint64_t since = request->since;
    request->busy = false;
    request->asker = free_request;
    free_request = (size_t)which;
    outstanding--;
    if (!clients[number].ready) {
        became_ready(number, t);
        return;
    }
    /* In an open loop those count that were due in time, else those that were answered in time. */
    uint64_t counts_by = options.mode == OPEN ? since : t;
    if (counts_by >= measure_begin && counts_by < measure_end)
        record(t - since);
    if (options.mode == CLOSED && t < measure_end)
        ask(number, t);
}

/* Reading. */

static void got_command(struct client *client)
{
    if (client->length >= 6 && !memcmp(client->start, "\x05READY", 6)) {
        size_t number = (size_t)(client - clients);
        ask(number, now());
        if (options.mode == WAIT)
            became_ready(number, now());
    } else if (client->length >= 7 && !memcmp(client->start, "\x04PING", 5)) {
        uint8_t pong[64] = {COMMAND, 0, 4, 'P', 'O', 'N', 'G'};
        size_t context = client->start_have - 7; /* after the name and a time to live */
        pong[1] = (uint8_t)(5 + context);
        memcpy(pong + 7, client->start + 7, context);
        append(client, pong, 7 + context);
    }
}

static void got_frame(struct client *client, uint64_t t)
{
    size_t number = (size_t)(client - clients);
    client->head_have = 0;
    if (options.sp)
        got_reply(number, client->length - 4, client->start + 4, t);
    else if (client->head[0] & COMMAND)
        got_command(client);
    else if (!(client->head[0] & MORE)) /* the empty frame before it is no news */
        got_reply(number, client->length, client->start, t);
}

static void got_bytes(struct client *client, const uint8_t *data, size_t size, uint64_t t)
{
    uint64_t connection = client->connecting_since; /* what is left of an earlier one is no news */
    while (size && client->fd >= 0 && client->connecting_since == connection) {
        if (client->greeting_left) {
            size_t part = size < client->greeting_left ? size : client->greeting_left;
            data += part, size -= part;
            client->greeting_left -= part;
            if (client->greeting_left)
                continue;
            if (options.sp)
                ask((size_t)(client - clients), t);
            else
                append_ready(client);
            continue;
        }
        if (client->left == 0) {
            client->head[client->head_have++] = *data++, size--;
            size_t skip = options.sp ? 0 : 1; /* ZMTP's flags are before the length */
            size_t width = options.sp || client->head[0] & LONG ? 8 : 1;
            if (client->head_have < skip + width)
                continue;
            client->length = client->left = big_endian(client->head + skip, (int)width);
            client->start_have = 0;
        } else {
            size_t part = size < client->left ? size : client->left;
            size_t kept = sizeof client->start - client->start_have;
            if (kept > part)
                kept = part;
            memcpy(client->start + client->start_have, data, kept);
            client->start_have += kept;
            client->left -= part;
            data += part, size -= part;
        }
        if (client->left == 0)
            got_frame(client, t);
    }
}

static void serve_event(struct epoll_event event)
{
    static uint8_t buffer[1 << 18];
    size_t number = event.data.u64;
    struct client *client = &clients[number];
    if (event.events & ~EPOLLOUT) {
        ssize_t size = recv(client->fd, buffer, sizeof buffer, 0);
        if (size == 0)
            fail("the server has closed the connection of client %zu", number);
        if (size < 0 && errno != EAGAIN)
            fail("client %zu: %s", number, strerror(errno));
        if (size > 0) {
            silent_turns = 0;
            got_bytes(client, buffer, (size_t)size, now());
        }
    }
    if (client->fd >= 0)
        flush(client);
}

/* The open loop's schedule: a Poisson process, the same in each run. */

static double exponential(void)
{
    static uint64_t state = 88172645463325252u;
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return -log((double)((state >> 11) + 1) / 9007199254740992.0);
}

static uint64_t ask_what_is_due(uint64_t t)
{
    static double due;
    static size_t turn;
    if (due == 0)
        due = (double)t;
    while (due <= (double)t && due < (double)measure_end) {
        ask(turn, (uint64_t)due);
        flush(&clients[turn]);
        turn = (turn + 1) % options.speakers;
        due += exponential() / options.rate * 1e9;
    }
    return (uint64_t)due;
}

static void set_timer(int timer, uint64_t when)
{
    struct itimerspec spec = {.it_value = {(time_t)(when / 1000000000), (long)(when % 1000000000)}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &spec, NULL);
}

static bool finished(uint64_t t)
{
    if (t < measure_end)
        return false;
    return options.mode == CONNECT || outstanding == 0;
}

static void run(void)
{
    enum { TIMER = -1, INPUT = -2 }; /* in place of a client's number */
    bool stays = options.mode == HOLD || options.mode == WAIT, holding = false;
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (options.mode == OPEN) {
        struct epoll_event event = {.events = EPOLLIN, .data.u64 = (uint64_t)TIMER};
        epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &event);
    }
    for (;;) {
        struct epoll_event events[64];
        int count = epoll_wait(epoll, events, 64, 100);
        if (count < 0 && errno != EINTR)
            fail("epoll_wait: %s", strerror(errno));
        if (count == 0 && ++silent_turns > PATIENCE_S * 10 && !holding)
            break;
        for (int i = 0; i < count; i++) {
            if (events[i].data.u64 == (uint64_t)INPUT)
                return;
            if (events[i].data.u64 != (uint64_t)TIMER)
                serve_event(events[i]);
        }
        uint64_t t = now();
        if (stays && ready == options.clients && !holding) {
            holding = true;
            struct epoll_event event = {.events = EPOLLIN, .data.u64 = (uint64_t)INPUT};
            epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event);
            printf("{\"clients\": %zu}\n", ready);
            fflush(stdout);
        }
        if (stays)
            continue;
        if (options.mode == OPEN && measure_begin != UINT64_MAX)
            set_timer(timer, ask_what_is_due(t));
        if (finished(t) || (measure_end != UINT64_MAX && t > measure_end + PATIENCE_S * 1000000000ull))
            break;
    }
    if (options.mode != CONNECT && ready < options.clients)
        fail("%zu of %zu clients were answered, then nothing for %d s", ready, options.clients,
             PATIENCE_S);
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* The least value that at least this share of all does not exceed. */
static double percentile(double share)
{
    if (answered_count == 0)
        return 0;
    size_t rank = (size_t)ceil(share * (double)answered_count);
    return (double)latencies[rank ? rank - 1 : 0] / 1e3;
}

static void report(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double cpu = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                 (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    if (answered_count)
        qsort(latencies, answered_count, sizeof *latencies, by_value);
    printf("{\"rps\": %.1f, \"answered\": %llu, \"errors\": %llu, \"lost\": %zu, "
           "\"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"p999\": %.1f, \"max\": %.1f, "
           "\"cpu\": %.3f}\n",
           (double)answered_count / options.seconds, (unsigned long long)answered_count,
           (unsigned long long)errors, options.mode == CONNECT ? 0 : outstanding, percentile(0.5),
           percentile(0.9), percentile(0.99), percentile(0.999), percentile(1), cpu);
}

static void read_options(int argc, char **argv)
{
    static const struct option names[] = {
        {"port", 1, 0, 'p'},     {"protocol", 1, 0, 'P'},  {"mode", 1, 0, 'm'},
        {"clients", 1, 0, 'c'},  {"speakers", 1, 0, 's'},  {"in-flight", 1, 0, 'k'},
        {"bytes", 1, 0, 'b'},    {"warmup", 1, 0, 'w'},    {"seconds", 1, 0, 't'},
        {"rate", 1, 0, 'r'},     {"cpu", 1, 0, 'C'},       {0, 0, 0, 0},
    };
    int name;
    while ((name = getopt_long(argc, argv, "", names, NULL)) != -1) {
        switch (name) {
        case 'p': options.port = atoi(optarg); break;
        case 'P': options.sp = !strcmp(optarg, "sp"); break;
        case 'm':
            while (strcmp(optarg, mode_names[options.mode]))
                if (++options.mode > WAIT)
                    fail("no mode %s", optarg);
            break;
        case 'c': options.clients = strtoul(optarg, NULL, 10); break;
        case 's': options.speakers = strtoul(optarg, NULL, 10); break;
        case 'k': options.in_flight = strtoul(optarg, NULL, 10); break;
        case 'b': options.bytes = strtoul(optarg, NULL, 10); break;
        case 'w': options.warmup = atof(optarg); break;
        case 't': options.seconds = atof(optarg); break;
        case 'r': options.rate = atof(optarg); break;
        case 'C': options.cpu = atoi(optarg); break;
        default: exit(2);
        }
    }
    if (options.speakers == 0 || options.speakers > options.clients)
        options.speakers = options.clients;
    if (options.port <= 0 || options.clients == 0 || options.bytes < ID_BYTES ||
        (options.mode == OPEN && options.rate <= 0))
        fail("needs --port, at least 1 client, at least %d --bytes, and a --rate with --mode open",
             ID_BYTES);
}

/* Runs as long as its parent, on the processor that it was told, and may open enough files. */
static void settle(void)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_TIMERSLACK, 1);
    if (options.cpu >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(options.cpu, &set);
        if (sched_setaffinity(0, sizeof set, &set))
            fail("processor %d: %s", options.cpu, strerror(errno));
    }
    rlim_t needed = options.clients + 64;
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur < needed) {
        limit.rlim_cur = needed;
        if (limit.rlim_max < needed)
            limit.rlim_max = needed;
        if (setrlimit(RLIMIT_NOFILE, &limit))
            fail("%zu clients need %lu open files, which the system does not allow (ulimit -n)",
                 options.clients, (unsigned long)needed);
    }
}

int main(int argc, char **argv)
{
    read_options(argc, argv);
    settle();
    epoll = epoll_create1(EPOLL_CLOEXEC);
    clients = calloc(options.clients, sizeof *clients);
    filler = grown(NULL, options.bytes, 1);
    memset(filler, 'x', options.bytes);
    size_t at_once = options.mode == CONNECT ? options.clients : HANDSHAKES;
    while (opened < options.clients && opened < at_once)
        open_client(opened++);
    run();
    if (options.mode != HOLD && options.mode != WAIT)
        report();
    return 0;
}

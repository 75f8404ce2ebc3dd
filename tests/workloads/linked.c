/*
 * A client and a server of HTTP/1.1 over TLS or in plain text, to be linked with a static OpenSSL.
 *
 *     linked server CERTIFICATE KEY     prints its port, then answers one connection at a time
 *     linked client AUTHORITY PORT PATH...
 *
 * "-" for CERTIFICATE or AUTHORITY means plain text. The server sends the number of bytes that a
 * path like /bytes/100 ends with. It uses SSL_read and SSL_write, the client SSL_read_ex and
 * SSL_write_ex. The client asks on one connection and prints the length of each answer's body.
 */

#include <arpa/inet.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HEAD_BYTES = 8192 };

struct stream {
    int descriptor;
    SSL *session;
};

static void check(int is_well, const char *what)
{
    if (!is_well) {
        perror(what);
        exit(1);
    }
}

/* Reads on until an empty line; returns the bytes there are, 0 at the end of the stream. */
static size_t read_head(struct stream *stream, char *head, int (*receive)(struct stream *, char *, int))
{
    size_t length = 0;
    do {
        int got = receive(stream, head + length, (int)(HEAD_BYTES - 1 - length));
        if (got <= 0)
            return 0;
        length += (size_t)got;
        head[length] = 0;
    } while (strstr(head, "\r\n\r\n") == NULL);
    return length;
}

static int server_receive(struct stream *stream, char *buffer, int size)
{
    if (stream->session == NULL)
        return (int)read(stream->descriptor, buffer, (size_t)size);
    return SSL_read(stream->session, buffer, size);
}

static int client_receive(struct stream *stream, char *buffer, int size)
{
    size_t moved = 0;
    if (stream->session == NULL)
        return (int)read(stream->descriptor, buffer, (size_t)size);
    return SSL_read_ex(stream->session, buffer, (size_t)size, &moved) ? (int)moved : 0;
}

static void serve(struct stream *stream)
{
    static char head[HEAD_BYTES];
    while (read_head(stream, head, server_receive) > 0) {
        char *number = strstr(head, "/bytes/");
        int size = number != NULL ? atoi(number + strlen("/bytes/")) : 0;
        char *answer = calloc(1, (size_t)size + 200);
        int length = sprintf(answer, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", size);
        memset(answer + length, 'x', (size_t)size);
        length += size;
        if (stream->session == NULL)
            check(write(stream->descriptor, answer, (size_t)length) == length, "write");
        else
            check(SSL_write(stream->session, answer, length) == length, "SSL_write");
        free(answer);
    }
}

static void ask(struct stream *stream, const char *path)
{
    static char head[HEAD_BYTES];
    char request[300];
    size_t length = (size_t)snprintf(request, sizeof request,
                                     "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path);
    size_t moved = 0;
    if (stream->session == NULL)
        check(write(stream->descriptor, request, length) == (ssize_t)length, "write");
    else
        check(SSL_write_ex(stream->session, request, length, &moved), "SSL_write_ex");
    length = read_head(stream, head, client_receive);
    check(length > 0, "no answer");
    long size = atol(strstr(head, "Content-Length: ") + strlen("Content-Length: "));
    long body = (long)length - (long)(strstr(head, "\r\n\r\n") + 4 - head);
    while (body < size) {
        int got = client_receive(stream, head, HEAD_BYTES);
        check(got > 0, "no more of the answer");
        body += got;
    }
    printf("{\"bytes\": %ld}\n", body);
}

int main(int count, char **arguments)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof address;
    struct stream stream = {socket(AF_INET, SOCK_STREAM, 0), NULL};
    SSL_CTX *context = NULL;
    check(count >= 4, "arguments");
    int is_server = strcmp(arguments[1], "server") == 0;
    if (strcmp(arguments[2], "-") != 0) {
        context = SSL_CTX_new(is_server ? TLS_server_method() : TLS_client_method());
        check(context != NULL, "SSL_CTX_new");
    }
    if (is_server) {
        int listening = stream.descriptor;
        if (context != NULL) {
            check(SSL_CTX_use_certificate_chain_file(context, arguments[2]) == 1, "certificate");
            check(SSL_CTX_use_PrivateKey_file(context, arguments[3], SSL_FILETYPE_PEM) == 1, "key");
        }
        check(bind(listening, (struct sockaddr *)&address, size) == 0, "bind");
        check(listen(listening, 16) == 0, "listen");
        check(getsockname(listening, (struct sockaddr *)&address, &size) == 0, "getsockname");
        printf("{\"port\": %d}\n", ntohs(address.sin_port));
        fflush(stdout);
        while ((stream.descriptor = accept(listening, NULL, NULL)) >= 0) {
            if (context != NULL) {
                stream.session = SSL_new(context);
                SSL_set_fd(stream.session, stream.descriptor);
            }
            if (stream.session == NULL || SSL_accept(stream.session) == 1)
                serve(&stream);
            SSL_free(stream.session);
            close(stream.descriptor);
        }
        return 1;
    }
    address.sin_port = htons((unsigned short)atoi(arguments[3]));
    check(connect(stream.descriptor, (struct sockaddr *)&address, size) == 0, "connect");
    if (context != NULL) {
        check(SSL_CTX_load_verify_locations(context, arguments[2], NULL) == 1, "authority");
        SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
        stream.session = SSL_new(context);
        SSL_set_fd(stream.session, stream.descriptor);
        check(SSL_connect(stream.session) == 1, "SSL_connect");
    }
    for (int index = 4; index < count; index++)
        ask(&stream, arguments[index]);
    SSL_free(stream.session);
    close(stream.descriptor);
    return 0;
}

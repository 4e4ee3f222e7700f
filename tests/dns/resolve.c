/* Prints the addresses that getaddrinfo returns for a name, one a line. Built with musl for evidence row 5.2-musl. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>

int main(int argc, char **argv) {
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *found, *at;
    char text[INET6_ADDRSTRLEN];
    int error = argc == 2 ? getaddrinfo(argv[1], NULL, &hints, &found) : EAI_NONAME;
    if (error) {
        fprintf(stderr, "%s\n", gai_strerror(error));
        return 2;
    }
    for (at = found; at; at = at->ai_next) {
        const void *address = at->ai_family == AF_INET
            ? (const void *)&((struct sockaddr_in *)at->ai_addr)->sin_addr
            : (const void *)&((struct sockaddr_in6 *)at->ai_addr)->sin6_addr;
        puts(inet_ntop(at->ai_family, address, text, sizeof text));
    }
    return 0;
}

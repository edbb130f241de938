/* Preloaded: writes to files whose name holds FAIL_PATH fail with errno FAIL_ERRNO once FAIL_AFTER
   bytes of them are written, as on a full quota or a network folder that is gone. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static long long written;

static int fails(int fd, size_t count) {
    const char *path = getenv("FAIL_PATH");
    char link[64], name[4096];
    if (!path) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, name, sizeof name - 1);
    if (length < 0) return 0;
    name[length] = 0;
    if (!strstr(name, path)) return 0;
    written += count;
    if (written <= atoll(getenv("FAIL_AFTER"))) return 0;
    errno = atoi(getenv("FAIL_ERRNO"));
    return 1;
}

#define WRAP(name, parameters, arguments)                                                    \
    ssize_t name parameters {                                                                \
        static ssize_t(*real) parameters;                                                    \
        if (fails(fd, count)) return -1;                                                     \
        if (!real) real = dlsym(RTLD_NEXT, #name);                                           \
        return real arguments;                                                               \
    }

WRAP(write, (int fd, const void *data, size_t count), (fd, data, count))
WRAP(pwrite, (int fd, const void *data, size_t count, off_t at), (fd, data, count, at))
WRAP(pwrite64, (int fd, const void *data, size_t count, off64_t at), (fd, data, count, at))

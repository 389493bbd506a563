/* A disk that fills up at a chosen write: preloaded into a process, it counts what that writes below a directory
 * and, from the chosen call on, writes half of what it is given once and then fails with ENOSPC.
 *
 * KM_QUOTA_DIR names the directory, KM_QUOTA_FILE a file of two 64-bit numbers: calls so far, and the call from
 * which on the disk is full (0: never). The test changes them while the process runs. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static volatile int64_t *told;
static char below[PATH_MAX];

#define NEXT(type, name, ...) \
    static type (*next)(__VA_ARGS__); \
    if (!next) next = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

__attribute__((constructor)) static void start(void) {
    const char *directory = getenv("KM_QUOTA_DIR"), *file = getenv("KM_QUOTA_FILE");
    if (!directory || !file) return;
    snprintf(below, sizeof below, "%s/", directory);
    int fd = (int)syscall(257 /* openat */, AT_FDCWD, file, O_RDWR);
    if (fd < 0) return;
    void *mapped = mmap(NULL, 16, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped != MAP_FAILED) told = mapped;
}

/* 0: go on; 1: half of it; 2: no room. */
static int room(void) {
    int64_t count = __sync_add_and_fetch(&told[0], 1), full_at = told[1];
    if (full_at <= 0 || count < full_at) return 0;
    return count == full_at ? 1 : 2;
}

static int path_counts(const char *path) {
    return told && path && strncmp(path, below, strlen(below)) == 0;
}

static int fd_counts(int fd) {
    char link[64], path[PATH_MAX];
    if (!told) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return path_counts(path);
}

#define WRITE(name, parameters, arguments) \
    ssize_t name parameters { \
        NEXT(ssize_t, #name, ARGUMENTS_##name); \
        if (!fd_counts(fd)) return next arguments; \
        switch (room()) { \
            case 0: return next arguments; \
            case 1: if (size > 1) { size /= 2; return next arguments; } /* fall through */ \
            default: errno = ENOSPC; return -1; \
        } \
    }
#define ARGUMENTS_write int, const void *, size_t
#define ARGUMENTS_pwrite int, const void *, size_t, off_t
#define ARGUMENTS_pwrite64 int, const void *, size_t, off64_t
WRITE(write, (int fd, const void *data, size_t size), (fd, data, size))
WRITE(pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
WRITE(pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))

#define WHOLE(type, name, counts, parameters, types, arguments) \
    type name parameters { \
        NEXT(type, #name, types); \
        if ((counts) && room()) { errno = ENOSPC; return -1; } \
        return next arguments; \
    }
#define TYPES(...) __VA_ARGS__
WHOLE(ssize_t, writev, fd_counts(fd), (int fd, const struct iovec *parts, int count),
      TYPES(int, const struct iovec *, int), (fd, parts, count))
WHOLE(int, mkdir, path_counts(path), (const char *path, mode_t mode), TYPES(const char *, mode_t), (path, mode))
WHOLE(int, rename, path_counts(to), (const char *from, const char *to), TYPES(const char *, const char *), (from, to))

static int makes(const char *path, int flags) {
    return (flags & O_CREAT) && path_counts(path) && access(path, F_OK) != 0;
}

#define OPEN(name, before, types, arguments) \
    int name(before const char *path, int flags, ...) { \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { \
            va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); \
        } \
        NEXT(int, #name, types, ...); \
        if (makes(path, flags) && room()) { errno = ENOSPC; return -1; } \
        return next arguments; \
    }
#define NONE
#define AT int directory,
OPEN(open, NONE, TYPES(const char *, int), (path, flags, mode))
OPEN(open64, NONE, TYPES(const char *, int), (path, flags, mode))
OPEN(openat, AT, TYPES(int, const char *, int), (directory, path, flags, mode))
OPEN(openat64, AT, TYPES(int, const char *, int), (directory, path, flags, mode))

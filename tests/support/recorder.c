/* Records the calls by which a program changes the files of one directory, and makes one of them fail or kill the
 * program. The program loads it with LD_PRELOAD. tests/support/recorder.rs compiles it, and reads the trace.
 *
 * RECORDER_DIR: the directory, spelled as the program spells it. RECORDER_TRACE: the file to which events are appended.
 * RECORDER_NODE: number of the program, where several append to one file.
 * RECORDER_FAULT: "KIND CLASS N ACTION": the N-th call (from 1) of a kind, on a file whose name begins with CLASS (is
 * CLASS, where that is "." or ".."), fails with the errno ACTION, or kills the process before it where ACTION is 0. A
 * write is done by half before that.
 *
 * A call and its event are made under one lock, so the order of the events is that of the calls. Calls of sync do
 * nothing but wait a little: what is durable is what the trace says. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum kind { OPEN = 1, WRITE, SYNC, RENAME, UNLINK, MKDIR };

struct event {
    uint32_t kind;
    int32_t fd;
    uint64_t offset;
    uint64_t time_ns;
    uint32_t error;
    uint32_t name_len;
    uint32_t data_len;
    uint32_t node;
};

enum { FDS = 4096, NAME_LEN = 64 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char dir[4096];
static char parent[4096];
static size_t dir_len;
static int trace = -1;
static uint32_t node;
/* Names of the files that are open, "" for those elsewhere. */
static char names[FDS][NAME_LEN];

static uint32_t fault_kind;
static char fault_class[NAME_LEN];
static long fault_number;
static int fault_action;

static int (*real_open64)(const char *, int, ...);
static ssize_t (*real_pwrite64)(int, const void *, size_t, off64_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_rename)(const char *, const char *);
static int (*real_unlink)(const char *);
static int (*real_mkdir)(const char *, mode_t);

__attribute__((constructor)) static void begin(void) {
    *(void **)&real_open64 = dlsym(RTLD_NEXT, "open64");
    *(void **)&real_pwrite64 = dlsym(RTLD_NEXT, "pwrite64");
    *(void **)&real_fsync = dlsym(RTLD_NEXT, "fsync");
    *(void **)&real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    *(void **)&real_rename = dlsym(RTLD_NEXT, "rename");
    *(void **)&real_unlink = dlsym(RTLD_NEXT, "unlink");
    *(void **)&real_mkdir = dlsym(RTLD_NEXT, "mkdir");
    const char *path = getenv("RECORDER_DIR"), *file = getenv("RECORDER_TRACE"), *fault = getenv("RECORDER_FAULT");
    const char *number = getenv("RECORDER_NODE");
    node = number ? atoi(number) : 0;
    if (!path || !file || strlen(path) >= sizeof dir)
        return;
    strcpy(dir, path);
    dir_len = strlen(dir);
    strcpy(parent, dir);
    char *slash = strrchr(parent, '/');
    if (slash)
        *slash = 0;
    else
        strcpy(parent, ".");
    static const char *const kinds[] = {"", "open", "write", "sync", "rename", "unlink", "mkdir"};
    char kind[16];
    if (fault && sscanf(fault, "%15s %63s %ld %d", kind, fault_class, &fault_number, &fault_action) == 4) {
        for (uint32_t at = 1; at < sizeof kinds / sizeof *kinds; at++)
            if (!strcmp(kind, kinds[at]))
                fault_kind = at;
    }
    trace = real_open64(file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
}

/* The name of a file of the directory, "." for itself, ".." for its parent, NULL for all others. */
static const char *name_of(const char *path) {
    if (trace < 0)
        return NULL;
    if (!strcmp(path, dir))
        return ".";
    if (!strcmp(path, parent))
        return "..";
    if (strncmp(path, dir, dir_len) || path[dir_len] != '/' || strlen(path + dir_len + 1) >= NAME_LEN)
        return NULL;
    return path + dir_len + 1;
}

static const char *name_of_fd(int fd) {
    return trace >= 0 && fd >= 0 && fd < FDS && names[fd][0] ? names[fd] : NULL;
}

static void record(struct event event, const char *name, const void *data) {
    event.name_len = strlen(name);
    event.node = node;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    event.time_ns = now.tv_sec * 1000000000ull + now.tv_nsec;
    struct iovec parts[3] = {
        {&event, sizeof event},
        {(void *)name, event.name_len},
        {(void *)data, event.data_len},
    };
    size_t len = sizeof event + event.name_len + event.data_len;
    if (writev(trace, parts, 3) != (ssize_t)len)
        abort();
}

static int is_of_class(const char *name) {
    if (fault_class[0] == '.')
        return !strcmp(name, fault_class);
    return !strncmp(name, fault_class, strlen(fault_class));
}

/* Whether this is the call that fails: its errno, 0 for no failure. Does not return where it kills. */
static int fault(uint32_t kind, const char *name, int fd, const void *data, size_t len, off64_t offset) {
    if (kind != fault_kind || !is_of_class(name) || --fault_number != 0)
        return 0;
    struct event event = {.kind = kind, .fd = fd, .offset = offset, .error = fault_action ? fault_action : EINTR};
    if (kind == WRITE) {
        ssize_t written = real_pwrite64(fd, data, len / 2, offset);
        event.data_len = written > 0 ? written : 0;
    }
    if (kind == RENAME)
        event.data_len = len;
    record(event, name, data);
    if (!fault_action)
        for (;;)
            kill(getpid(), SIGKILL);
    return fault_action;
}

static int failed(int error) {
    pthread_mutex_unlock(&lock);
    errno = error;
    return -1;
}

/* Records the end of a call that was made. */
static int done(struct event event, const char *name, const void *data, int result) {
    int error = result < 0 ? errno : 0;
    event.error = error;
    record(event, name, data);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}

int open64(const char *path, int flags, ...) {
    mode_t mode = 0;
    if (flags & O_CREAT) {
        va_list rest;
        va_start(rest, flags);
        mode = va_arg(rest, mode_t);
        va_end(rest);
    }
    pthread_mutex_lock(&lock);
    const char *name = name_of(path);
    int error = name ? fault(OPEN, name, -1, NULL, 0, flags) : 0;
    if (error)
        return failed(error);
    int fd = real_open64(path, flags, mode);
    if (fd >= 0 && fd < FDS)
        strcpy(names[fd], name ? name : "");
    if (!name) {
        pthread_mutex_unlock(&lock);
        return fd;
    }
    struct event event = {.kind = OPEN, .fd = fd, .offset = flags & (O_CREAT | O_TRUNC | O_DIRECTORY)};
    return done(event, name, NULL, fd);
}

ssize_t pwrite64(int fd, const void *data, size_t len, off64_t offset) {
    pthread_mutex_lock(&lock);
    const char *name = name_of_fd(fd);
    int error = name ? fault(WRITE, name, fd, data, len, offset) : 0;
    if (error)
        return failed(error);
    ssize_t written = real_pwrite64(fd, data, len, offset);
    if (!name) {
        pthread_mutex_unlock(&lock);
        return written;
    }
    struct event event = {.kind = WRITE, .fd = fd, .offset = offset, .data_len = written > 0 ? written : 0};
    return done(event, name, data, written);
}

static int sync_fd(int fd, int (*real)(int)) {
    pthread_mutex_lock(&lock);
    const char *name = name_of_fd(fd);
    if (!name) {
        pthread_mutex_unlock(&lock);
        return real(fd);
    }
    int error = fault(SYNC, name, fd, NULL, 0, 0);
    if (error)
        return failed(error);
    struct timespec pause = {.tv_nsec = 100000};
    nanosleep(&pause, NULL);
    return done((struct event){.kind = SYNC, .fd = fd}, name, NULL, 0);
}

int fsync(int fd) { return sync_fd(fd, real_fsync); }

int fdatasync(int fd) { return sync_fd(fd, real_fdatasync); }

int rename(const char *from, const char *to) {
    pthread_mutex_lock(&lock);
    const char *name = name_of(to), *before = name_of(from);
    if (!name || !before) {
        pthread_mutex_unlock(&lock);
        return real_rename(from, to);
    }
    size_t len = strlen(before);
    int error = fault(RENAME, name, -1, before, len, 0);
    if (error)
        return failed(error);
    int result = real_rename(from, to);
    for (int fd = 0; result == 0 && fd < FDS; fd++)
        if (!strcmp(names[fd], before))
            strcpy(names[fd], name);
    struct event event = {.kind = RENAME, .fd = -1, .data_len = len};
    return done(event, name, before, result);
}

int unlink(const char *path) {
    pthread_mutex_lock(&lock);
    const char *name = name_of(path);
    int error = name ? fault(UNLINK, name, -1, NULL, 0, 0) : 0;
    if (error)
        return failed(error);
    int result = real_unlink(path);
    if (!name) {
        pthread_mutex_unlock(&lock);
        return result;
    }
    return done((struct event){.kind = UNLINK, .fd = -1}, name, NULL, result);
}

int mkdir(const char *path, mode_t mode) {
    pthread_mutex_lock(&lock);
    const char *name = name_of(path);
    int error = name ? fault(MKDIR, name, -1, NULL, 0, 0) : 0;
    if (error)
        return failed(error);
    int result = real_mkdir(path, mode);
    if (!name) {
        pthread_mutex_unlock(&lock);
        return result;
    }
    return done((struct event){.kind = MKDIR, .fd = -1}, name, NULL, result);
}

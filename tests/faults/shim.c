// Faults in the file calls of a program, and a record of these calls. Loaded with LD_PRELOAD by the tests.
//
// A filter of the kernel (seccomp) turns every file call into a signal, and the handler makes the call. So calls are seen
// that pass by the C library: rustix makes system calls itself. Only calls on files below one directory count. fsync and
// fdatasync are never passed on: the tests need their order, not their effect.
//
//   BITNET_FAULT_ROOT   the directory, absolute and without links
//   BITNET_FAULT_LOG    the file for the record, outside of the directory
//   BITNET_FAULT_MODE   eio, look, enospc, eintr, short or kill: a fault at one call of the kind, or from it on (full);
//                       record: no fault, every change with its data
//   BITNET_FAULT_AT     the number of the call, from 1; 0: no fault, every call of the kind is logged
//
// An entry of the record is a line `CALL RESULT INODE OFFSET FLAGS LENGTH LENGTH LENGTH`, two paths and the data of a write.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>

// The only place from which file calls are let through.
long bitnet_gate(long number, long a, long b, long c, long d, long e, long f);
extern char bitnet_gate_end[];
#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
__asm__(".globl bitnet_gate\n.hidden bitnet_gate_end\n.globl bitnet_gate_end\nbitnet_gate:\n"
        "mov %rdi,%rax\nmov %rsi,%rdi\nmov %rdx,%rsi\nmov %rcx,%rdx\nmov %r8,%r10\nmov %r9,%r8\nmov 8(%rsp),%r9\n"
        "syscall\nbitnet_gate_end:\nret\n");
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
__asm__(".globl bitnet_gate\n.hidden bitnet_gate_end\n.globl bitnet_gate_end\nbitnet_gate:\n"
        "mov x8,x0\nmov x0,x1\nmov x1,x2\nmov x2,x3\nmov x3,x4\nmov x4,x5\nmov x5,x6\n"
        "svc #0\nbitnet_gate_end:\nret\n");
#else
#error "expected x86-64 or aarch64"
#endif

enum { EIO_AT = 1, LOOK = 2, ENOSPC_AT = 4, EINTR_AT = 8, SHORT = 16, KILL = 32, FULL = 64, RECORD = 128 };

static int mode;
static long at;
static char root[4096];
static size_t root_length;
static int log_file = -1;
static long count;
static int lock;

struct call {
    long number;
    const char *name;
    int faults; // what can happen to it
};

static const struct call CALLS[] = {
#ifdef __NR_open
    {__NR_open, "open", EIO_AT | EINTR_AT},
    {__NR_creat, "creat", EIO_AT | EINTR_AT | ENOSPC_AT | FULL | KILL},
    {__NR_stat, "stat", LOOK},
    {__NR_lstat, "lstat", LOOK},
    {__NR_access, "access", LOOK},
    {__NR_readlink, "readlink", LOOK},
    {__NR_rename, "rename", EIO_AT | ENOSPC_AT | KILL},
    {__NR_link, "link", EIO_AT | ENOSPC_AT | FULL | KILL},
    {__NR_unlink, "unlink", EIO_AT | KILL},
    {__NR_rmdir, "rmdir", EIO_AT | KILL},
    {__NR_mkdir, "mkdir", EIO_AT | ENOSPC_AT | FULL | KILL},
#endif
#ifdef __NR_renameat
    {__NR_renameat, "rename", EIO_AT | ENOSPC_AT | KILL},
#endif
    {__NR_openat, "open", EIO_AT | EINTR_AT},
    {__NR_read, "read", EIO_AT | EINTR_AT | SHORT},
    {__NR_pread64, "pread", EIO_AT | EINTR_AT | SHORT},
    {__NR_readv, "readv", EIO_AT | EINTR_AT},
    {__NR_write, "write", EIO_AT | EINTR_AT | SHORT | ENOSPC_AT | FULL | KILL},
    {__NR_pwrite64, "pwrite", EIO_AT | EINTR_AT | SHORT | ENOSPC_AT | FULL | KILL},
    {__NR_writev, "writev", EIO_AT | EINTR_AT | ENOSPC_AT | FULL | KILL},
    {__NR_fsync, "fsync", EIO_AT | EINTR_AT | ENOSPC_AT | KILL},
    {__NR_fdatasync, "fdatasync", EIO_AT | EINTR_AT | ENOSPC_AT | KILL},
    {__NR_ftruncate, "ftruncate", EIO_AT | EINTR_AT | ENOSPC_AT | KILL},
    {__NR_fallocate, "fallocate", EIO_AT | EINTR_AT | ENOSPC_AT | FULL | KILL},
    {__NR_copy_file_range, "copy", EIO_AT | EINTR_AT | ENOSPC_AT | FULL | KILL},
    {__NR_sendfile, "copy", EIO_AT | EINTR_AT | ENOSPC_AT | FULL | KILL},
    {__NR_flock, "flock", EIO_AT | EINTR_AT | KILL},
    {__NR_renameat2, "rename", EIO_AT | ENOSPC_AT | KILL},
    {__NR_linkat, "link", EIO_AT | ENOSPC_AT | FULL | KILL},
    {__NR_unlinkat, "unlink", EIO_AT | KILL},
    {__NR_mkdirat, "mkdir", EIO_AT | ENOSPC_AT | FULL | KILL},
    {__NR_getdents64, "getdents", EIO_AT},
    {__NR_statx, "stat", LOOK},
    {__NR_newfstatat, "stat", LOOK},
    {__NR_readlinkat, "readlink", LOOK},
    {__NR_faccessat, "access", LOOK},
    {__NR_mmap, "mmap", EIO_AT},
};
enum { CALL_COUNT = sizeof CALLS / sizeof CALLS[0] };

static void path_of_descriptor(int fd, char *to, size_t size) {
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    long length = bitnet_gate(__NR_readlinkat, AT_FDCWD, (long)name, (long)to, (long)size - 1, 0, 0);
    to[length < 0 ? 0 : length] = 0;
}

// The absolute path of a path in a call. A path that begins in the current directory counts for nothing.
static void resolve(int directory, const char *path, char *to, size_t size) {
    to[0] = 0;
    int fd;
    if (!path || !path[0]) {
        if (directory >= 0) path_of_descriptor(directory, to, size);
    } else if (sscanf(path, "/proc/self/fd/%d", &fd) == 1) {
        path_of_descriptor(fd, to, size);
    } else if (path[0] == '/') {
        snprintf(to, size, "%s", path);
    } else if (directory >= 0) {
        path_of_descriptor(directory, to, size);
        size_t length = strlen(to);
        snprintf(to + length, size - length, "/%s", path);
    }
}

static int is_watched(const char *path) {
    return strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == 0);
}

static void log_call(const char *name, long result, uint64_t inode, long offset, long flags, const char *one, const char *two,
                     const void *data, size_t length) {
    char line[256];
    int head = snprintf(line, sizeof line, "%s %ld %lu %ld %ld %zu %zu %zu\n", name, result, (unsigned long)inode, offset, flags,
                        strlen(one), strlen(two), length);
    struct iovec parts[4] = {
        {line, (size_t)head}, {(void *)one, strlen(one)}, {(void *)two, strlen(two)}, {(void *)data, length}};
    bitnet_gate(__NR_writev, log_file, (long)parts, 4, 0, 0, 0);
}

static uint64_t inode_of(int directory, const char *path, int flags) {
    struct stat found;
    long done = bitnet_gate(__NR_newfstatat, directory, (long)path, (long)&found, flags, 0, 0);
    return done < 0 ? 0 : (uint64_t)found.st_ino | ((uint64_t)S_ISDIR(found.st_mode) << 63);
}

// The call, with a record of what it changed.
static long record(const struct call *call, long *a, const char *one, const char *two) {
    long number = call->number, offset = 0, flags = 0;
    uint64_t inode = 0;
    const char *name = call->name;
    const void *data = NULL;
    int is_new = 0;
    // so that every copied byte is seen
    if (number == __NR_copy_file_range) return -EXDEV;
    if (number == __NR_sendfile) return -EINVAL;
    while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE)) {
    }
    if (strcmp(name, "open") == 0) {
        flags = number == __NR_openat ? a[2] : a[1];
        is_new = inode_of(AT_FDCWD, one, 0) == 0;
    } else if (number == __NR_unlinkat || strcmp(name, "unlink") == 0 || strcmp(name, "rmdir") == 0) {
        inode = inode_of(AT_FDCWD, one, AT_SYMLINK_NOFOLLOW);
    } else if (number == __NR_linkat) {
        inode = inode_of((int)a[0], (const char *)a[1], 0);
    } else if (strcmp(name, "link") == 0) {
        inode = inode_of(AT_FDCWD, one, 0);
    } else if (number == __NR_renameat2) {
        flags = a[4];
    } else if (number == __NR_write) {
        offset = bitnet_gate(__NR_lseek, a[0], 0, SEEK_CUR, 0, 0, 0);
    }
    int is_sync = number == __NR_fsync || number == __NR_fdatasync;
    long result = is_sync ? 0 : bitnet_gate(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (strcmp(name, "open") == 0) {
        if (result >= 0) inode = inode_of((int)result, "", AT_EMPTY_PATH);
        if ((flags & O_TMPFILE) == O_TMPFILE) name = "unnamed";
        else if ((flags & O_CREAT) && is_new) name = "create";
        else if (!(flags & O_TRUNC)) name = NULL;
    } else if (strcmp(name, "mkdir") == 0) {
        inode = inode_of(AT_FDCWD, one, 0);
    } else if (number == __NR_write || number == __NR_pwrite64 || is_sync || number == __NR_ftruncate ||
               number == __NR_fallocate) {
        inode = inode_of((int)a[0], "", AT_EMPTY_PATH);
        if (number == __NR_write || number == __NR_pwrite64) data = (const void *)a[1];
        if (number == __NR_pwrite64) offset = a[3];
        if (number == __NR_ftruncate) offset = a[1];
        if (number == __NR_fallocate) flags = a[1];
    } else if (strcmp(name, "rename") && strcmp(name, "link") && strcmp(name, "unlink") && strcmp(name, "rmdir")) {
        // calls that change something and that the reader of the record would have to know
        name = (call->faults & KILL) && number != __NR_flock ? "unknown" : NULL;
    }
    if (name) log_call(name, result, inode, offset, flags, one, two, data, data && result > 0 ? (size_t)result : 0);
    __atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
    return result;
}

static long handle(long number, long *a) {
    const struct call *call = NULL;
    for (int i = 0; i < CALL_COUNT; i++)
        if (CALLS[i].number == number) call = &CALLS[i];
    char one[4096] = "", two[4096] = "";
    int is_at = number == __NR_openat || number == __NR_unlinkat || number == __NR_mkdirat || number == __NR_statx ||
                number == __NR_newfstatat || number == __NR_readlinkat || number == __NR_faccessat;
    if (!call) return -ENOSYS;
    if (number == __NR_renameat2 || number == __NR_linkat
#ifdef __NR_renameat
        || number == __NR_renameat
#endif
    ) {
        resolve((int)a[0], (const char *)a[1], one, sizeof one);
        resolve((int)a[2], (const char *)a[3], two, sizeof two);
    } else if (is_at) {
        resolve((int)a[0], (const char *)a[1], one, sizeof one);
#ifdef __NR_open
    } else if (number == __NR_rename || number == __NR_link) {
        resolve(AT_FDCWD, (const char *)a[0], one, sizeof one);
        resolve(AT_FDCWD, (const char *)a[1], two, sizeof two);
    } else if (number == __NR_open || number == __NR_creat || number == __NR_stat || number == __NR_lstat ||
               number == __NR_access || number == __NR_readlink || number == __NR_unlink || number == __NR_rmdir ||
               number == __NR_mkdir) {
        resolve(AT_FDCWD, (const char *)a[0], one, sizeof one);
#endif
    } else {
        path_of_descriptor((int)(number == __NR_mmap ? a[4] : number == __NR_copy_file_range ? a[2] : a[0]), one, sizeof one);
    }
    int is_sync = number == __NR_fsync || number == __NR_fdatasync;
    if (!is_watched(one) && !is_watched(two)) return bitnet_gate(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (mode == RECORD) return record(call, a, one, two);
    int faults = call->faults;
    if (strcmp(call->name, "open") == 0) {
        long flags = number == __NR_openat ? a[2] : a[1];
        if ((flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE) faults |= ENOSPC_AT | FULL | KILL;
    }
    // a short call needs two bytes to be short
    if (mode == SHORT && a[2] < 2) faults = 0;
    long n = faults & mode ? __atomic_add_fetch(&count, 1, __ATOMIC_RELAXED) : -1;
    int is_hit = at > 0 && (n == at || (mode == FULL && n > at));
    if (n > 0 && (at == 0 || n == at)) log_call(call->name, n, 0, 0, 0, one, two, NULL, 0);
    if (is_hit && mode == KILL) bitnet_gate(__NR_kill, getpid(), SIGKILL, 0, 0, 0, 0);
    if (is_hit && (mode == EIO_AT || mode == LOOK)) return -EIO;
    if (is_hit && (mode == ENOSPC_AT || mode == FULL)) return -ENOSPC;
    if (is_hit && mode == EINTR_AT) return -EINTR;
    long length = is_hit && mode == SHORT ? a[2] / 2 : a[2];
    return is_sync ? 0 : bitnet_gate(number, a[0], a[1], length, a[3], a[4], a[5]);
}

static void on_call(int signal, siginfo_t *info, void *context) {
    (void)signal;
    (void)info;
    int saved = errno;
    ucontext_t *where = context;
#if defined(__x86_64__)
    greg_t *r = where->uc_mcontext.gregs;
    long a[6] = {r[REG_RDI], r[REG_RSI], r[REG_RDX], r[REG_R10], r[REG_R8], r[REG_R9]};
    r[REG_RAX] = handle(info->si_syscall, a);
#else
    unsigned long long *r = where->uc_mcontext.regs;
    long a[6] = {(long)r[0], (long)r[1], (long)r[2], (long)r[3], (long)r[4], (long)r[5]};
    r[0] = (unsigned long long)handle(info->si_syscall, a);
#endif
    errno = saved;
}

static void fail(const char *what) {
    dprintf(2, "fault shim: %s\n", what);
    _exit(77);
}

__attribute__((constructor)) static void start(void) {
    const char *directory = getenv("BITNET_FAULT_ROOT"), *log_path = getenv("BITNET_FAULT_LOG");
    const char *kind = getenv("BITNET_FAULT_MODE"), *number = getenv("BITNET_FAULT_AT");
    static const char *const KINDS[] = {"eio", "look", "enospc", "eintr", "short", "kill", "full", "record"};
    if (!directory || !log_path || !kind || !number) fail("a variable is not set");
    snprintf(root, sizeof root, "%s", directory);
    root_length = strlen(root);
    at = atol(number);
    for (int i = 0; i < 8; i++)
        if (strcmp(kind, KINDS[i]) == 0) mode = 1 << i;
    if (!mode) fail("no such mode");
    int file = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (file < 0) fail("the record cannot be opened");
    log_file = fcntl(file, F_DUPFD_CLOEXEC, 500);
    close(file);
    if (log_file < 0) fail("the record has no descriptor");
    struct sigaction action = {.sa_sigaction = on_call, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigfillset(&action.sa_mask);
    sigdelset(&action.sa_mask, SIGBUS);
    sigdelset(&action.sa_mask, SIGSEGV);
    if (sigaction(SIGSYS, &action, NULL)) fail("no handler");

    struct sock_filter code[8 + CALL_COUNT + 3];
    int n = 0;
    uint64_t end = (uint64_t)(uintptr_t)bitnet_gate_end;
#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define STEP(...) code[n++] = (struct sock_filter)__VA_ARGS__
    STEP(LOAD(arch));
    STEP(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0));
    STEP(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    STEP(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer)));
    STEP(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)end, 0, 3));
    STEP(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer) + 4));
    STEP(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(end >> 32), 0, 1));
    STEP(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    STEP(LOAD(nr));
    for (int i = 0; i < CALL_COUNT; i++)
        STEP(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)CALLS[i].number, (unsigned char)(CALL_COUNT - i), 0));
    STEP(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    STEP(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP));
    struct sock_fprog program = {(unsigned short)n, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        fail("the kernel refuses the filter");
}

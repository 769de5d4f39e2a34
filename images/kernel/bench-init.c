/*
 * The only program of the benchmark's initrd: says that user space is reached and ends
 * the machine. By default it powers off; with the argument "reset" (after "--" on the
 * kernel's command line) it asks for a reset, for monitors that have no power-off; with
 * "stay" it does neither.
 * No libc: nothing but the kernel is measured.
 */
#define SYS_WRITE 1
#define SYS_PAUSE 34
#define SYS_REBOOT 169
#define REBOOT_MAGIC1 0xfee1deadL
#define REBOOT_MAGIC2 672274793L
#define REBOOT_RESTART 0x01234567L
#define REBOOT_POWER_OFF 0x4321fedcL

static long call(long number, long a, long b, long c)
{
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c)
                     : "rcx", "r11", "memory");
    return result;
}

static int is(const char *word, const char *wanted)
{
    while (*wanted != '\0' && *word == *wanted) {
        word++;
        wanted++;
    }
    return *word == *wanted;
}

/* The stack at entry: argc, argv[0], argv[1], ... */
__attribute__((used)) void run(long *stack)
{
    static const char line[] = "bench: user space reached\n";
    long how = REBOOT_POWER_OFF;
    int stays = 0;
    for (long i = 1; i < stack[0]; i++) {
        if (is((const char *)stack[1 + i], "reset"))
            how = REBOOT_RESTART;
        if (is((const char *)stack[1 + i], "stay"))
            stays = 1;
    }
    call(SYS_WRITE, 1, (long)line, sizeof(line) - 1);
    if (!stays)
        call(SYS_REBOOT, REBOOT_MAGIC1, REBOOT_MAGIC2, how);
    for (;;)
        call(SYS_PAUSE, 0, 0, 0);
}

__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall run\n");

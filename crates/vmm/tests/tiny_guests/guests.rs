//! Guests of a few instructions, entered in 64-bit mode with the first 4 GiB mapped to themselves.
//!
//! Each is position-independent machine code between two labels; `rsi` points to Linux's boot
//! parameters, as it would for a kernel.

use std::arch::global_asm;

macro_rules! guests {
    ($($(#[$doc:meta])* $name:ident: $($line:literal)+;)+) => {$(
        global_asm!(
            ".pushsection .rodata",
            concat!("tiny_guest_", stringify!($name), ":"),
            $($line,)+
            concat!("tiny_guest_", stringify!($name), "_end:"),
            ".popsection",
        );

        $(#[$doc])*
        pub(crate) fn $name() -> &'static [u8] {
            unsafe extern "C" {
                #[link_name = concat!("tiny_guest_", stringify!($name))]
                static START: u8;
                #[link_name = concat!("tiny_guest_", stringify!($name), "_end")]
                static END: u8;
            }
            let (start, end) = (&raw const START, &raw const END);
            // SAFETY: both labels lie in read-only data, the second behind the first, and what lies
            // between them is initialized bytes.
            unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
        }
    )+};
}

guests! {
    /// Powers itself off by the ACPI sleep control register.
    power_off:
        "mov dx, 0x600"
        "mov al, 0x34"
        "out dx, al"
        "2: hlt"
        "jmp 2b";

    /// Asks for a reset as its first deed, each time.
    reset:
        "mov dx, 0xcf9"
        "mov al, 6"
        "out dx, al"
        "2: hlt"
        "jmp 2b";

    /// Waits for ever, interrupts off.
    idle:
        "cli"
        "2: hlt"
        "jmp 2b";

    /// Keeps its processor busy for ever.
    spin:
        "2: jmp 2b";

    /// Faults with no handler for the fault, nor for the fault in finding it.
    triple_fault:
        "sub rsp, 16"
        "mov qword ptr [rsp], 0"
        "mov qword ptr [rsp + 8], 0"
        "lidt [rsp]"
        "ud2";

    /// Goes on at an address where a device is: KVM has no instruction to execute there.
    execute_device_memory:
        "mov eax, 0xe0000000"
        "jmp rax";

    /// Prints "hello", then powers itself off.
    hello:
        "lea rbx, [rip + 3f]"
        "mov dx, 0x3f8"
        "2: mov al, [rbx]"
        "test al, al"
        "jz 4f"
        "out dx, al"
        "inc rbx"
        "jmp 2b"
        "3: .asciz \"hello\\n\""
        "4: mov dx, 0x600"
        "mov al, 0x34"
        "out dx, al"
        "5: hlt"
        "jmp 5b";

    /// Prints every byte that it reads, and powers itself off after a 'q'.
    echo:
        "2: mov dx, 0x3fd"
        "in al, dx"
        "test al, 1"
        "jz 2b"
        "mov dx, 0x3f8"
        "in al, dx"
        "out dx, al"
        "cmp al, 'q'"
        "jne 2b"
        "mov dx, 0x600"
        "mov al, 0x34"
        "out dx, al"
        "3: hlt"
        "jmp 3b";

    /// Prints for ever, as fast as it can.
    flood:
        "mov dx, 0x3f8"
        "mov al, 'x'"
        "2: out dx, al"
        "jmp 2b";

    /// Prints its memory map: a byte for the number of entries, then each as 20 bytes.
    print_memory_map:
        "mov dx, 0x3f8"
        "mov al, [rsi + 0x1e8]"
        "out dx, al"
        "movzx eax, al"
        "imul ecx, eax, 20"
        "lea rbx, [rsi + 0x2d0]"
        "2: mov al, [rbx]"
        "out dx, al"
        "inc rbx"
        "dec ecx"
        "jnz 2b"
        "mov dx, 0x600"
        "mov al, 0x34"
        "out dx, al"
        "3: hlt"
        "jmp 3b";

    /// Wakes its second processor, which prints '2' in real mode; then powers itself off.
    second_processor:
        // Real-mode code at 0x10000 (SIPI vector 0x10): out 0x3f8, '2'; then set [0x500] and halt.
        "lea rbx, [rip + 5f]"
        "mov rdi, 0x10000"
        "mov rsi, rbx"
        "mov rcx, 32"
        "rep movsb"
        "mov byte ptr [0x11000], 0"
        "mov rbx, 0xfee00000"
        // Enable it, then INIT and two SIPI to all but self.
        "mov dword ptr [rbx + 0xf0], 0x1ff"
        "mov dword ptr [rbx + 0x300], 0x000c4500"
        "mov ecx, 100000"
        "2: dec ecx"
        "jnz 2b"
        "mov dword ptr [rbx + 0x300], 0x000c4610"
        "mov dword ptr [rbx + 0x300], 0x000c4610"
        "3: cmp byte ptr [0x11000], 1"
        "jne 3b"
        "mov dx, 0x600"
        "mov al, 0x34"
        "out dx, al"
        "4: hlt"
        "jmp 4b"
        "5: .byte 0xba, 0xf8, 0x03"                   // mov dx, 0x3f8
        ".byte 0xb0, 0x32"                            // mov al, '2'
        ".byte 0xee"                                  // out dx, al
        ".byte 0xb8, 0x00, 0x11, 0x8e, 0xd8"          // mov ax, 0x1100; mov ds, ax
        ".byte 0xc6, 0x06, 0x00, 0x00, 0x01"          // mov byte [0], 1
        ".byte 0xf4, 0xeb, 0xfd";                     // hlt; jmp

    /// Says by pvpanic, in PCI slot 4, that it has panicked.
    panic:
        "mov rbx, 0xe0020000"
        "mov word ptr [rbx + 4], 2"
        "mov eax, [rbx + 16]"
        "and eax, -16"
        "mov byte ptr [rax], 1"
        "2: hlt"
        "jmp 2b";

    /// Waits for the power button's event and powers itself off.
    wait_for_power_button:
        "2: mov dx, 0x602"
        "in al, dx"
        "test al, 1"
        "jz 2b"
        "mov dx, 0x600"
        "mov al, 0x34"
        "out dx, al"
        "3: hlt"
        "jmp 3b";

    /// Does not hear the first press of its power button, and powers off at the second.
    wait_for_two_presses:
        "mov ecx, 2"
        "2: mov dx, 0x602"
        "in al, dx"
        "test al, 1"
        "jz 2b"
        "loop 2b"
        "mov dx, 0x600"
        "mov al, 0x34"
        "out dx, al"
        "3: hlt"
        "jmp 3b";

    /// Plays the script that lies behind it (`hostile::script`), entry by entry.
    player:
        "cli"
        "cld"
        "lea rbx, [rip + 9f]"
        "2: mov r8, [rbx]"
        "mov rcx, [rbx + 8]"
        "mov rdx, [rbx + 16]"
        "mov rsi, [rbx + 24]"
        "mov rdi, [rbx + 32]"
        "mov rbp, [rbx + 40]"
        "add rbx, 48"
        "test r8, r8"
        "jnz 3f"
        "4: hlt"
        "jmp 4b"
        "3: test rdi, rdi"
        "jz 2b"
        "mov rax, rsi"
        "cmp r8, 2"
        "je 22f"
        "cmp r8, 3"
        "je 23f"
        "cmp r8, 4"
        "je 24f"
        "cmp r8, 5"
        "je 25f"
        "cmp r8, 6"
        "je 26f"
        "cmp r8, 7"
        "je 27f"
        // Write memory: rcx bytes.
        "cmp rcx, 2"
        "je 32f"
        "cmp rcx, 4"
        "je 34f"
        "cmp rcx, 8"
        "je 38f"
        "mov [rdx], al"
        "jmp 8f"
        "32: mov [rdx], ax"
        "jmp 8f"
        "34: mov [rdx], eax"
        "jmp 8f"
        "38: mov [rdx], rax"
        "jmp 8f"
        // Read memory.
        "22: cmp rcx, 2"
        "je 42f"
        "cmp rcx, 4"
        "je 44f"
        "cmp rcx, 8"
        "je 48f"
        "mov al, [rdx]"
        "jmp 8f"
        "42: mov ax, [rdx]"
        "jmp 8f"
        "44: mov eax, [rdx]"
        "jmp 8f"
        "48: mov rax, [rdx]"
        "jmp 8f"
        // Write a port.
        "23: cmp rcx, 2"
        "je 52f"
        "cmp rcx, 4"
        "je 54f"
        "out dx, al"
        "jmp 8f"
        "52: out dx, ax"
        "jmp 8f"
        "54: out dx, eax"
        "jmp 8f"
        // Read a port.
        "24: cmp rcx, 2"
        "je 62f"
        "cmp rcx, 4"
        "je 64f"
        "in al, dx"
        "jmp 8f"
        "62: in ax, dx"
        "jmp 8f"
        "64: in eax, dx"
        "jmp 8f"
        // Wait until the four bytes, under the mask in the value's upper half, are its lower half.
        "25: mov r9d, [rdx]"
        "mov r10, rsi"
        "shr r10, 32"
        "and r9d, r10d"
        "cmp r9d, esi"
        "je 2b"
        "pause"
        "jmp 8f"
        // From a port to the value's address, as one instruction.
        "26: xchg rcx, rdi"
        "xchg rdi, rsi"
        "cmp rsi, 2"
        "je 72f"
        "cmp rsi, 4"
        "je 74f"
        "rep insb"
        "jmp 2b"
        "72: rep insw"
        "jmp 2b"
        "74: rep insd"
        "jmp 2b"
        // And back.
        "27: xchg rcx, rdi"
        "cmp rdi, 2"
        "je 82f"
        "cmp rdi, 4"
        "je 84f"
        "rep outsb"
        "jmp 2b"
        "82: rep outsw"
        "jmp 2b"
        "84: rep outsd"
        "jmp 2b"
        "8: add rdx, rbp"
        "dec rdi"
        "jmp 3b"
        "9:";

    /// Waits for input, reads three bytes by one instruction and prints them by another, then powers itself off.
    strings:
        "cld"
        "2: mov dx, 0x3fd"
        "in al, dx"
        "test al, 1"
        "jz 2b"
        "mov dx, 0x3f8"
        "mov edi, 0x300000"
        "mov ecx, 3"
        "rep insb"
        "mov esi, 0x300000"
        "mov ecx, 3"
        "rep outsb"
        "mov dx, 0x600"
        "mov al, 0x34"
        "out dx, al"
        "3: hlt"
        "jmp 3b";

    /// For every byte that it reads, prints the next letter three times: as a register, an SSE register and
    /// memory know it. Powers itself off after a 'q'.
    letters:
        "mov rax, cr4"
        "or eax, 0x200"
        "mov cr4, rax"
        "mov ebx, 'a'"
        "mov esi, 0x300100"
        "mov [rsi], ebx"
        "movups xmm5, [rsi]"
        "mov dword ptr [rsi], 0"
        "mov byte ptr [0x300000], 'a'"
        "2: mov dx, 0x3fd"
        "in al, dx"
        "test al, 1"
        "jz 2b"
        "mov dx, 0x3f8"
        "in al, dx"
        "cmp al, 'q'"
        "je 3f"
        "mov al, bl"
        "out dx, al"
        "inc ebx"
        "movups [rsi], xmm5"
        "mov eax, [rsi]"
        "out dx, al"
        "inc eax"
        "mov [rsi], eax"
        "movups xmm5, [rsi]"
        "mov dword ptr [rsi], 0"
        "mov al, [0x300000]"
        "out dx, al"
        "inc byte ptr [0x300000]"
        "jmp 2b"
        "3: mov dx, 0x600"
        "mov al, 0x34"
        "out dx, al"
        "4: hlt"
        "jmp 4b";

    /// Works on 64 pages from 4 MiB on. For every byte that it reads: 'w' writes 1, 2, 3, ... into them, one number
    /// a page; 'q' powers it off; any other reads the next eight and prints the lowest byte of their sum.
    pages:
        "sti"
        "mov ebx, 0x400000"
        "2: mov dx, 0x3fd"
        "in al, dx"
        "test al, 1"
        "jz 2b"
        "mov dx, 0x3f8"
        "in al, dx"
        "cmp al, 'q'"
        "je 6f"
        "cmp al, 'w'"
        "je 4f"
        "xor eax, eax"
        "mov edi, 8"
        "3: add eax, [rbx]"
        "add ebx, 0x1000"
        "dec edi"
        "jnz 3b"
        "out dx, al"
        "jmp 2b"
        "4: mov ebx, 0x400000"
        "mov ecx, 1"
        "5: mov [rbx], ecx"
        "add ebx, 0x1000"
        "inc ecx"
        "cmp ecx, 65"
        "jne 5b"
        "mov ebx, 0x400000"
        "out dx, al"
        "jmp 2b"
        "6: mov dx, 0x600"
        "mov al, 0x34"
        "out dx, al"
        "7: hlt"
        "jmp 7b";

    /// Has its local APIC interrupt it every millisecond. For every byte that it reads, waits for three more
    /// interrupts and prints 't'. Powers itself off after a 'q'.
    ticks:
        // The IDT at 0x301000, of which vector 0x30 is used; its pointer at 0x302000.
        "lea rax, [rip + 9f]"
        "mov rdi, 0x301300"
        "mov [rdi], ax"
        "mov word ptr [rdi + 2], 0x10"
        "mov word ptr [rdi + 4], 0x8e00"
        "shr rax, 16"
        "mov [rdi + 6], ax"
        "shr rax, 16"
        "mov [rdi + 8], eax"
        "mov dword ptr [rdi + 12], 0"
        "mov rdi, 0x302000"
        "mov word ptr [rdi], 0xfff"
        "mov rax, 0x301000"
        "mov [rdi + 2], rax"
        "lidt [rdi]"
        "mov dword ptr [0x300008], 0"
        // On, divided by 1, periodic, a million ticks of a gigahertz.
        "mov ebx, 0xfee00000"
        "mov dword ptr [rbx + 0xf0], 0x1ff"
        "mov dword ptr [rbx + 0x3e0], 0xb"
        "mov dword ptr [rbx + 0x320], 0x20030"
        "mov dword ptr [rbx + 0x380], 1000000"
        "sti"
        "2: mov dx, 0x3fd"
        "in al, dx"
        "test al, 1"
        "jz 2b"
        "mov dx, 0x3f8"
        "in al, dx"
        "cmp al, 'q'"
        "je 5f"
        "mov ecx, [0x300008]"
        "add ecx, 3"
        "3: hlt"
        "cmp [0x300008], ecx"
        "jl 3b"
        "mov al, 't'"
        "out dx, al"
        "jmp 2b"
        "5: mov dx, 0x600"
        "mov al, 0x34"
        "out dx, al"
        "6: hlt"
        "jmp 6b"
        "9: push rbx"
        "inc dword ptr [0x300008]"
        "mov ebx, 0xfee000b0"
        "mov dword ptr [rbx], 0"
        "pop rbx"
        "iretq";

    /// For every byte that it reads, prints the 16 bytes of the VM generation id, and then the pending ACPI
    /// events.
    generation:
        "2: mov dx, 0x3fd"
        "in al, dx"
        "test al, 1"
        "jz 2b"
        "mov dx, 0x3f8"
        "in al, dx"
        "mov ebx, 0xd0100"
        "mov ecx, 16"
        "3: mov al, [rbx]"
        "out dx, al"
        "inc rbx"
        "dec ecx"
        "jnz 3b"
        "mov dx, 0x602"
        "in al, dx"
        "mov dx, 0x3f8"
        "out dx, al"
        "jmp 2b";

    /// Waits for PCI slots to be filled, of which it says '+', and lets go of those that it is asked for, of
    /// which it says '-'; after each, 'd' or 'e' for a device in slot 5 or none.
    hot_plug:
        "2: mov dx, 0x602"
        "in al, dx"
        "test al, 2"
        "jz 2b"
        "mov dx, 0x604"
        "in eax, dx"
        "test eax, eax"
        "jz 3f"
        "mov al, '+'"
        "call 6f"
        "3: mov dx, 0x608"
        "in eax, dx"
        "test eax, eax"
        "jz 2b"
        "mov dx, 0x60c"
        "out dx, eax"
        "mov al, '-'"
        "call 6f"
        "jmp 2b"
        "6: mov dx, 0x3f8"
        "out dx, al"
        "mov ebx, 0xe0028000"
        "mov eax, [rbx]"
        "cmp ax, 0x1af4"
        "mov al, 'd'"
        "je 7f"
        "mov al, 'e'"
        "7: out dx, al"
        "ret";

    /// Lets go of every PCI slot, again and again.
    eject_all:
        "mov dx, 0x60c"
        "mov eax, -1"
        "2: out dx, eax"
        "jmp 2b";

    /// Is busy for ever, and takes interrupts, of which there are none.
    busy:
        "sti"
        "2: jmp 2b";

    /// Is busy with interrupts off until it reads a byte; from then on, with interrupts on.
    stuck_until_input:
        "cli"
        "2: mov dx, 0x3fd"
        "in al, dx"
        "test al, 1"
        "jz 2b"
        "sti"
        "3: jmp 3b";

    /// Waits for interrupts, of which there are none.
    wait_with_interrupts_on:
        "2: sti"
        "hlt"
        "jmp 2b";
}

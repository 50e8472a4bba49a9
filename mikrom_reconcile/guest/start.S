/* Where Firecracker jumps to: 64-bit mode, interrupts off, the first 1 GiB mapped one to one, and in
 * rsi the address of the "zero page" (struct boot_params of the Linux 64-bit boot protocol). */

.section .text.start, "ax"
.globl _start
_start:
    lea stack_top(%rip), %rsp       /* Firecracker's own stack is a few bytes in low memory */
    mov %rsi, %rdi                  /* C takes its first argument in rdi */
    call guest_main                 /* does not return */

.bss
.balign 16
.skip 4096
stack_top:

.section .note.GNU-stack, "", @progbits   /* or ld warns that it must assume an executable stack */

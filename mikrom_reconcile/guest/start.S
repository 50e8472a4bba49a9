/* The two ways in. Firecracker jumps to _start: 64-bit mode, interrupts off, the first 1 GiB mapped one to one, and in
 * rsi the address of the "zero page" (struct boot_params of the Linux 64-bit boot protocol). QEMU looks for a note of
 * type 18 and jumps to what it names, pvh_start: 32-bit mode without paging, and in ebx the address of the "start info"
 * (struct hvm_start_info of the PVH boot protocol). */

.section .text.start, "ax"
.globl _start
_start:
    lea stack_top(%rip), %rsp       /* Firecracker's own stack is a few bytes in low memory */
    mov %rsi, %rdi                  /* C takes its first argument in rdi */
    call guest_main                 /* does not return */

.code32
pvh_start:
    movl $0x1ff, 0xfee000f0         /* the local APIC: on, */
    movl $0x700, 0xfee00350         /* and what the PIC says goes to the CPU (LINT0 is ExtINT) */
    mov $page_directory, %edi       /* 512 pages of 2 MiB: present, writable, large */
    mov $0x83, %eax
1:  mov %eax, (%edi)                /* the upper halves are zero, as all of .bss */
    add $0x200000, %eax
    add $8, %edi
    cmp $page_directory + 4096, %edi
    jne 1b
    movl $page_directory + 3, page_directory_pointers
    movl $page_directory_pointers + 3, page_map
    mov $page_map, %eax
    mov %eax, %cr3
    mov $0x20, %eax                 /* CR4.PAE */
    mov %eax, %cr4
    mov $0xc0000080, %ecx           /* EFER.LME */
    rdmsr
    or $0x100, %eax
    wrmsr
    mov %cr0, %eax                  /* CR0.PG */
    or $0x80000000, %eax
    mov %eax, %cr0
    lgdt descriptor_table_register
    ljmp $8, $pvh_start_64

.code64
pvh_start_64:
    mov $16, %eax
    mov %eax, %ss
    mov %eax, %ds
    mov %eax, %es
    lea stack_top(%rip), %rsp
    mov %ebx, %edi
    call guest_main_pvh             /* does not return */

.balign 8
descriptor_table:                   /* as Firecracker's: code is 8, data is 16 */
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
descriptor_table_register:
    .word descriptor_table_register - descriptor_table - 1
    .long descriptor_table

/* The owner of the note should be "Xen". QEMU does not look at it. Firecracker does, from 1.12 on, and would enter here
 * too if it were: then there would be a second way in to test, one that fails where KVM runs only 64-bit guests. */
.section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18
    .asciz "mik"
    .quad pvh_start

.bss
.balign 4096
page_map:
    .skip 4096
page_directory_pointers:
    .skip 4096
page_directory:
    .skip 4096
.skip 4096
stack_top:

.section .note.GNU-stack, "", @progbits   /* or ld warns that it must assume an executable stack */

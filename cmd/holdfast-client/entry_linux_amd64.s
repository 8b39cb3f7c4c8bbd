#include "textflag.h"

// entry is where the process begins, when it is linked with -E main.entry: as System V's ABI has it, with argc at the top of the stack and the arguments above.
// It gives quick a try, and then begins as any program of Go, with the stack as it was.
TEXT ·entry(SB),NOSPLIT|NOFRAME,$0
	MOVQ	$158, AX	// arch_prctl
	MOVQ	$0x1002, DI	// ARCH_SET_FS: what the compiler puts before functions called from here loads the current goroutine, below FS. There is none.
	LEAQ	·local+8(SB), SI
	SYSCALL
	TESTQ	AX, AX
	JNZ	begin
	MOVQ	SP, AX
	SUBQ	$16, SP
	MOVQ	AX, 0(SP)
	CALL	·quick(SB)
	ADDQ	$16, SP
begin:
	JMP	_rt0_amd64_linux(SB)

#include "textflag.h"

DATA prime<>+0(SB)/4, $16777619
GLOBL prime<>(SB), RODATA|NOPTR, $4

// All bits but those of pd_checksum, the low half of the third word.
DATA mask<>+0(SB)/8, $0xFFFFFFFFFFFFFFFF
DATA mask<>+8(SB)/8, $0xFFFFFFFFFFFF0000
DATA mask<>+16(SB)/8, $0xFFFFFFFFFFFFFFFF
DATA mask<>+24(SB)/8, $0xFFFFFFFFFFFFFFFF
GLOBL mask<>(SB), RODATA|NOPTR, $32

// s = s*prime ^ s>>17 in each of eight lanes; Y15 is the prime.
#define MIX(s, t) \
	VPSRLD  $17, s, t; \
	VPMULLD Y15, s, s; \
	VPXOR   t, s, s

#define MIX4 \
	MIX(Y0, Y4); \
	MIX(Y1, Y5); \
	MIX(Y2, Y6); \
	MIX(Y3, Y7)

// func sumAVX2(p *[8192]byte) uint32
TEXT ·sumAVX2(SB), NOSPLIT, $0-12
	MOVQ         p+0(FP), SI
	LEAQ         8192(SI), DI
	VPBROADCASTD prime<>(SB), Y15
	VMOVDQU      ·offsets+0(SB), Y0
	VMOVDQU      ·offsets+32(SB), Y1
	VMOVDQU      ·offsets+64(SB), Y2
	VMOVDQU      ·offsets+96(SB), Y3
	VMOVDQU      (SI), Y8
	VPAND        mask<>(SB), Y8, Y8

row:
	VPXOR   Y8, Y0, Y0
	VPXOR   32(SI), Y1, Y1
	VPXOR   64(SI), Y2, Y2
	VPXOR   96(SI), Y3, Y3
	MIX4
	ADDQ    $128, SI
	CMPQ    SI, DI
	JEQ     end
	VMOVDQU (SI), Y8
	JMP     row

end:
	MIX4 // two rows of zeros
	MIX4
	VPXOR        Y1, Y0, Y0
	VPXOR        Y3, Y2, Y2
	VPXOR        Y2, Y0, Y0
	VEXTRACTI128 $1, Y0, X1
	VPXOR        X1, X0, X0
	VPSHUFD      $0x4E, X0, X1
	VPXOR        X1, X0, X0
	VPSHUFD      $0xB1, X0, X1
	VPXOR        X1, X0, X0
	VMOVD        X0, AX
	MOVL         AX, ret+8(FP)
	VZEROUPPER
	RET

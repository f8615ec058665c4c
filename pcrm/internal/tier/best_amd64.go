//go:build amd64 && !purego

package tier

import "golang.org/x/sys/cpu"

// Best returns the fastest tier that the processor supports.
func Best() Tier {
	switch {
	case cpu.X86.HasAVX512F && cpu.X86.HasAVX512DQ && cpu.X86.HasAVX2 && cpu.X86.HasFMA:
		return AVX512
	case cpu.X86.HasAVX2 && cpu.X86.HasFMA:
		return AVX2
	}
	return Scalar
}

//go:build amd64 && !purego

package pcrm

import (
	"unsafe"

	"github.com/pcrm-project/pcrm/pcrm/internal/tier"
)

//go:generate go -C internal/asmgen run ./loss -out ../../kernel_amd64.s -stubs ../../stubs_amd64.go -pkg pcrm

// simdBlock returns a sum that is not finite if the scalar loop must compute the block.
func simdBlock[F Float](t tier.Tier, losses, gradChosen, gradRejected, chosen, rejected, delta []F, s settings) float64 {
	wide, step := t == tier.AVX512, 32
	if wide {
		step = 64
	}
	// A single delta becomes a vector over which the kernel does not advance.
	var same [16]F
	if len(delta) == 1 {
		for i := range same {
			same[i] = delta[0]
		}
		delta, step = same[:], 0
	}
	// Direct calls, because the slices would escape through a function variable.
	switch double := unsafe.Sizeof(F(0)) == 8; {
	case double && wide:
		return rewardBlockAVX512F64(address[float64](losses), address[float64](gradChosen), address[float64](gradRejected),
			address[float64](chosen), address[float64](rejected), address[float64](delta),
			len(chosen), step, s.scale, s.smoothing, s.center)
	case double:
		return rewardBlockAVX2F64(address[float64](losses), address[float64](gradChosen), address[float64](gradRejected),
			address[float64](chosen), address[float64](rejected), address[float64](delta),
			len(chosen), step, s.scale, s.smoothing, s.center)
	case wide:
		return rewardBlockAVX512F32(address[float32](losses), address[float32](gradChosen), address[float32](gradRejected),
			address[float32](chosen), address[float32](rejected), address[float32](delta),
			len(chosen), step, float32(s.scale), float32(s.smoothing), float32(s.center))
	}
	return rewardBlockAVX2F32(address[float32](losses), address[float32](gradChosen), address[float32](gradRejected),
		address[float32](chosen), address[float32](rejected), address[float32](delta),
		len(chosen), step, float32(s.scale), float32(s.smoothing), float32(s.center))
}

// address returns the first element as the type that F is known to be, or nil for nil.
func address[T, F Float](s []F) *T { return (*T)(unsafe.Pointer(unsafe.SliceData(s))) }

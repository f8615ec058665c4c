//go:build amd64 && !purego

package pcrm

import (
	"unsafe"

	"github.com/pcrm-project/pcrm/pcrm/internal/tier"
)

//go:generate go -C internal/asmgen run ./loss -out ../../kernel_amd64.s -stubs ../../stubs_amd64.go -pkg pcrm

// simdBlock returns a sum that is not finite where the scalar loop has to look.
func simdBlock[F Float](t tier.Tier, losses, gradChosen, gradRejected, chosen, rejected, delta []F, s settings) float64 {
	wide, step := t == tier.AVX512, 32
	if wide {
		step = 64
	}
	// One delta for all is a vector that the kernel does not step over.
	var same [16]F
	if len(delta) == 1 {
		for i := range same {
			same[i] = delta[0]
		}
		delta, step = same[:], 0
	}
	// Named calls: through a variable the slices would escape.
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

// address is the first element as the type that F is known to be; nil for nil.
func address[T, F Float](s []F) *T { return (*T)(unsafe.Pointer(unsafe.SliceData(s))) }

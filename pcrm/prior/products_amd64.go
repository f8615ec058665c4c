//go:build amd64 && !purego

package prior

import (
	"unsafe"

	"github.com/pcrm-project/pcrm/pcrm/internal/tier"
)

//go:generate go -C ../internal/asmgen run ./cosine -out ../../prior/kernel_amd64.s -stubs ../../prior/stubs_amd64.go -pkg prior

func products32(a, b []float32) (ab, aa, bb float64) {
	if tier.Current() == tier.Scalar {
		return scalarProducts(a, b)
	}
	return productsAVX2(unsafe.SliceData(a), unsafe.SliceData(b), min(len(a), len(b)))
}

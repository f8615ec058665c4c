//go:build !amd64 || purego

package pcrm

func bestTier() tier { return scalarTier }

// simdBlock is not reached: there is no tier but the scalar one.
func simdBlock[F Float](_ tier, _, _, _, _, _, _ []F, _ settings) float64 { panic("no SIMD") }

func firstDifference(a, b []int64) int { return scalarFirstDifference(a, b) }

func firstEqual(a []int64, value int64) int { return scalarFirstEqual(a, value) }

func products32(a, b []float32) (ab, aa, bb float64) { return scalarProducts(a, b) }

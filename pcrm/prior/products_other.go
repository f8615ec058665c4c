//go:build !amd64 || purego

package prior

func products32(a, b []float32) (ab, aa, bb float64) { return scalarProducts(a, b) }

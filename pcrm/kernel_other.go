//go:build !amd64 || purego

package pcrm

import "github.com/pcrm-project/pcrm/pcrm/internal/tier"

// simdBlock is never called, because the only tier is the scalar one.
func simdBlock[F Float](_ tier.Tier, _, _, _, _, _, _ []F, _ settings) float64 { panic("no SIMD") }

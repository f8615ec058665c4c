package pcrm_test

import (
	"fmt"
	"testing"

	"github.com/pcrm-project/pcrm/pcrm"
)

// The kernels on one thread. A copy of the same bytes (three arrays read, two written) is the
// limit that memory sets.
func BenchmarkRewardLoss(b *testing.B) {
	pcrm.SetNumThreads(1)
	defer pcrm.SetNumThreads(0)
	for _, n := range []int{8, 256, 16384, 262144, 1 << 20} {
		b.Run(fmt.Sprintf("float32/%d", n), func(b *testing.B) { benchmarkReward[float32](b, n, 4) })
		b.Run(fmt.Sprintf("float64/%d", n), func(b *testing.B) { benchmarkReward[float64](b, n, 8) })
	}
}

func benchmarkReward[F pcrm.Float](b *testing.B, n, size int) {
	chosen, rejected, delta := batch(n)
	c, r, d := to[F](chosen), to[F](rejected), to[F](delta)
	gradChosen, gradRejected := make([]F, n), make([]F, n)
	for _, tier := range tiers() {
		b.Run(tier, func(b *testing.B) {
			forceTier(b, tier)
			perPair(b, n, 5*size, func() {
				_, _ = pcrm.RewardLoss(nil, gradChosen, gradRejected, c, r, d, pcrm.RewardOptions{})
			})
		})
	}
	src, dst := make([]F, 5*n/2), make([]F, 5*n/2)
	b.Run("copy", func(b *testing.B) { perPair(b, n, 5*size, func() { copy(dst, src) }) })
}

// The token form at the size of a training step, 16 rows of 1024 tokens that differ after the
// first quarter, and only the search for the spans.
func BenchmarkTokenLoss(b *testing.B) {
	rows, width := 16, 1024
	n := rows * width
	c64, r64, d64 := batch(n)
	chosen, rejected, delta := to[float32](c64), to[float32](r64), to[float32](d64)[:rows]
	ids, other := make([]int64, n), make([]int64, n)
	for i := range n {
		ids[i] = int64(1 + i%97)
		other[i] = ids[i]
		if i%width >= width/4 {
			other[i]++
		}
	}
	gradChosen, gradRejected := make([]float32, n), make([]float32, n)
	for _, tier := range tiers() {
		b.Run(tier, func(b *testing.B) {
			forceTier(b, tier)
			perPair(b, n, 36, func() {
				_, _ = pcrm.TokenLoss(nil, gradChosen, gradRejected, chosen, rejected, ids, other, delta, 0, pcrm.RewardOptions{})
			})
		})
	}
	b.Run("spans", func(b *testing.B) {
		perPair(b, n, 16, func() {
			for i := 0; i < n; i += width {
				pcrm.Span(ids[i:i+width], other[i:i+width], 0)
			}
		})
	})
}

func BenchmarkDPOLoss(b *testing.B) {
	for _, n := range []int{8, 64, 4096} {
		x, delta := logps(n)
		var p [4][]float32
		for k := range x {
			p[k] = to[float32](x[k])
		}
		d, gradChosen, gradRejected := to[float32](delta), make([]float32, n), make([]float32, n)
		for _, tier := range tiers() {
			b.Run(fmt.Sprintf("%d/%s", n, tier), func(b *testing.B) {
				forceTier(b, tier)
				perPair(b, n, 28, func() {
					_, _ = pcrm.DPOLoss(nil, gradChosen, gradRejected, nil, nil, p[0], p[1], p[2], p[3], d, pcrm.DPOOptions{Beta: 0.1})
				})
			})
		}
	}
}

func perPair(b *testing.B, n, bytes int, f func()) {
	b.SetBytes(int64(n * bytes))
	for b.Loop() {
		f()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/pair")
}

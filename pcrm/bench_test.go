package pcrm_test

import (
	"fmt"
	"testing"

	"github.com/pcrm-project/pcrm/pcrm"
)

// The kernels on one thread: a copy of the same bytes (three arrays read, two
// written) is what the memory allows.
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

func perPair(b *testing.B, n, bytes int, f func()) {
	b.SetBytes(int64(n * bytes))
	for b.Loop() {
		f()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/pair")
}

package pcrm_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pcrm-project/pcrm/pcrm"
)

func TestSetTier(t *testing.T) {
	defer forceTier(t, pcrm.Tier())
	if wanted := os.Getenv("PCRM_TIER"); wanted != "" {
		assert.Equal(t, wanted, pcrm.Tier(), "PCRM_TIER asks for a tier that is not here")
	}
	for _, name := range tiers() {
		require.NoError(t, pcrm.SetTier(name))
		assert.Equal(t, name, pcrm.Tier())
	}
	require.NoError(t, pcrm.SetTier("auto"))
	all := tiers()
	assert.Equal(t, all[len(all)-1], pcrm.Tier())
	assert.ErrorContains(t, pcrm.SetTier("typo"), "tier must be auto or, on this machine, one of scalar")
	assert.Equal(t, all[len(all)-1], pcrm.Tier(), "an error changes nothing")
}

// The variable is read when the package starts, so each name needs its own process.
func TestUnknownTierIsReported(t *testing.T) {
	if os.Getenv("PCRM_TEST_TIER") != "" {
		fmt.Println("tier:", pcrm.Tier())
		return
	}
	all := tiers()
	start := func(name string) string {
		command := []string{os.Args[0], "-test.run=^TestUnknownTierIsReported$"}
		if emulator := os.Getenv("PCRM_TEST_EMULATOR"); emulator != "" { // for another processor's instructions
			command = append([]string{emulator}, command...)
		}
		c := exec.Command(command[0], command[1:]...)
		c.Env = append(os.Environ(), "PCRM_TEST_TIER=1", "PCRM_TIER="+name)
		out, err := c.CombinedOutput()
		require.NoError(t, err, string(out))
		return string(out)
	}
	best := "tier: " + all[len(all)-1]
	out := start("axv2")
	assert.Contains(t, out, "ignoring PCRM_TIER")
	assert.Contains(t, out, fmt.Sprintf(`must be auto or, on this machine, one of %s, got "axv2"`, strings.Join(all, ", ")))
	assert.Contains(t, out, best)
	for _, name := range []string{"", "auto", "scalar"} {
		out := start(name)
		assert.NotContains(t, out, "ignoring PCRM_TIER", name)
		if name != "scalar" {
			assert.Contains(t, out, best)
		}
	}
}

// Any number of threads gives the same bits, for sizes around the one from which threads are used.
// Errors name the same element too.
func TestThreadsChangeNothing(t *testing.T) {
	defer pcrm.SetNumThreads(0)
	for _, tier := range tiers() {
		forceTier(t, tier)
		for _, n := range []int{100, 4096 * 3, 4096*8 + 17, 200_000} {
			chosen, rejected, delta := batch(n)
			c, r, d := to[float32](chosen), to[float32](rejected), to[float32](delta)
			x, dpoDelta := logps(n)
			var want []float64
			var wantGrad []float32
			for _, threads := range []int{1, 2, 3, 16, -1} {
				pcrm.SetNumThreads(threads)
				gradChosen, gradRejected := make([]float32, n), make([]float32, n)
				reward, err := pcrm.RewardLoss(nil, gradChosen, gradRejected, c, r, d, pcrm.RewardOptions{})
				require.NoError(t, err)
				dpo, err := pcrm.DPOLoss(nil, nil, nil, nil, nil, x[0], x[1], x[2], x[3], dpoDelta, pcrm.DPOOptions{Beta: 0.1})
				require.NoError(t, err)
				got := []float64{reward, dpo}
				if want == nil {
					want, wantGrad = got, gradChosen
				}
				require.Equal(t, want, got)
				require.Equal(t, wantGrad, gradChosen)
			}
			d[n-1], d[n/2] = -1, -2
			_, err := pcrm.RewardLoss(nil, nil, nil, c, r, d, pcrm.RewardOptions{})
			assert.EqualError(t, err, fmt.Sprintf("delta[%d] must be greater than 0, got -2", n/2))
		}
		chosen, rejected, chosenIDs, rejectedIDs, delta := tokenBatch(64, 700)
		var want float64
		for _, threads := range []int{1, 2, 7} {
			pcrm.SetNumThreads(threads)
			got, err := pcrm.TokenLoss(nil, nil, nil, chosen, rejected, chosenIDs, rejectedIDs, delta, 0, pcrm.RewardOptions{})
			require.NoError(t, err)
			if threads == 1 {
				want = got
			}
			require.Equal(t, want, got)
		}
	}
}

// Calls from many goroutines at once share nothing (for the race detector).
func TestConcurrentCalls(t *testing.T) {
	chosen, rejected, delta := batch(30_000)
	want, err := pcrm.RewardLoss(nil, nil, nil, chosen, rejected, delta, pcrm.RewardOptions{})
	require.NoError(t, err)
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			grad, other := make([]float64, len(chosen)), make([]float64, len(chosen))
			for range 5 {
				got, err := pcrm.RewardLoss(nil, grad, other, chosen, rejected, delta, pcrm.RewardOptions{})
				assert.NoError(t, err)
				assert.Equal(t, want, got)
			}
		})
	}
	wait.Wait()
}

// No form allocates, on no tier, whether serial (small) or parallel (large).
func TestLossesAllocateNothing(t *testing.T) {
	for _, tier := range tiers() {
		forceTier(t, tier)
		for _, n := range []int{100, 150_000} {
			allocatesNothing[float32](t, n)
			allocatesNothing[float64](t, n)
		}
	}
}

func allocatesNothing[F pcrm.Float](t *testing.T, n int) {
	c64, r64, d64 := batch(n)
	chosen, rejected, delta := to[F](c64), to[F](r64), to[F](d64)
	losses, grad, other := make([]F, n), make([]F, n), make([]F, n)
	rows := 10
	ids, otherIDs := make([]int64, n), make([]int64, n)
	for i := range otherIDs {
		otherIDs[i] = int64(i % 3)
	}
	for name, f := range map[string]func() error{
		"reward": func() error {
			_, err := pcrm.RewardLoss(losses, grad, other, chosen, rejected, delta, pcrm.RewardOptions{})
			return err
		},
		"token": func() error {
			_, err := pcrm.TokenLoss(losses[:rows], grad, other, chosen, rejected, ids, otherIDs, delta[:rows], -7, pcrm.RewardOptions{})
			return err
		},
		"dpo": func() error {
			_, err := pcrm.DPOLoss(losses, grad, other, nil, nil, chosen, rejected, rejected, chosen, delta, pcrm.DPOOptions{Beta: 0.1})
			return err
		},
	} {
		require.NoError(t, f())
		// The count covers the whole process, in which the runtime may allocate occasionally. An
		// allocation of ours would appear in all five counts.
		least := 1.0
		for i := 0; i < 5 && least > 0; i++ {
			least = min(least, testing.AllocsPerRun(10, func() { _ = f() }))
		}
		assert.Zero(t, least, "%s, %d", name, n)
	}
}

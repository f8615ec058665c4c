package pcrm

import (
	"sync/atomic"
	"unsafe"

	"github.com/pcrm-project/pcrm/pcrm/internal/parallel"
	"github.com/pcrm-project/pcrm/pcrm/internal/tier"
)

// parallelPairs is the least number of pairs for which a second thread pays off. Waking a
// thread takes some tens of microseconds. The SIMD kernels process this many pairs in
// 150 microseconds; the scalar kernels take at least as long for an eighth of them.
const parallelPairs = 1 << 17

// SetNumThreads limits the number of threads that one call may use, in this package and in
// the packages prior, stats and checkpoint. 0, the default, means GOMAXPROCS. Results are
// identical to the last bit for any number of threads.
func SetNumThreads(n int) { parallel.SetNumThreads(n) }

// NumThreads returns the number of threads that one call may use.
func NumThreads() int { return parallel.NumThreads() }

// form is the form of the loss that a job computes.
type form int

const (
	pairForm form = iota
	tokenForm
	dpoForm
)

// job is the work of one call, divided into blocks that threads take in turn. Jobs are
// reused, so that a call allocates nothing.
type job[F Float] struct {
	losses, gradChosen, gradRejected, chosen, rejected, delta []F
	settings

	form form

	// The token form: each block has this many rows of this many tokens.
	chosenIDs, rejectedIDs []int64
	padToken               int64
	width, rows            int

	// The DPO form.
	referenceChosen, referenceRejected, chosenRewards, rejectedRewards []F
	beta                                                               float64

	work   *parallel.Job
	sums   []float64 // of the blocks; added in order, whichever thread computed them
	failed atomic.Bool
}

var (
	jobs32 = make(chan *job[float32], 16)
	jobs64 = make(chan *job[float64], 16)
)

func jobs[F Float]() chan *job[F] {
	var c any = jobs32
	if unsafe.Sizeof(F(0)) == 8 {
		c = jobs64
	}
	return c.(chan *job[F])
}

func takeJob[F Float]() *job[F] {
	var j *job[F]
	select {
	case j = <-jobs[F]():
	default:
		j = &job[F]{}
		j.work = parallel.NewJob(j.block, j.free)
		return j
	}
	j.work.Hold()
	return j
}

// release returns the job for reuse and drops its references to the caller's memory.
func (j *job[F]) release() {
	j.losses, j.gradChosen, j.gradRejected, j.chosen, j.rejected, j.delta = nil, nil, nil, nil, nil, nil
	j.chosenIDs, j.rejectedIDs = nil, nil
	j.referenceChosen, j.referenceRejected, j.chosenRewards, j.rejectedRewards = nil, nil, nil, nil
	j.form = pairForm
	j.work.Release()
}

// free makes the job available again. It is called when the last holder has left.
func (j *job[F]) free() {
	select {
	case jobs[F]() <- j:
	default:
	}
}

// run computes all blocks, which together hold the given number of pairs, and returns the sum of their sums.
func (j *job[F]) run(blocks, pairs int) (total float64, ok bool) {
	if cap(j.sums) < blocks {
		j.sums = make([]float64, blocks)
	}
	j.sums = j.sums[:blocks]
	j.failed.Store(false)
	if tier.Current() == tier.Scalar {
		pairs *= 8
	}
	threads := 1
	if pairs >= parallelPairs {
		threads = NumThreads()
	}
	j.work.Run(blocks, threads)
	for _, s := range j.sums {
		total += s
	}
	return total, !j.failed.Load()
}

func (j *job[F]) block(b int) {
	var ok bool
	switch j.form {
	case tokenForm:
		j.sums[b], ok = j.tokenRows(b)
	case dpoForm:
		j.sums[b], ok = j.dpo(b)
	default:
		j.sums[b], ok = j.pairs(b)
	}
	if !ok {
		j.failed.Store(true)
	}
}

func (j *job[F]) pairs(b int) (float64, bool) {
	from, to := b*blockPairs, min((b+1)*blockPairs, len(j.chosen))
	return rewardBlock(part(j.losses, from, to), part(j.gradChosen, from, to), part(j.gradRejected, from, to),
		j.chosen[from:to], j.rejected[from:to], j.delta[from:to], j.settings)
}

// part returns s[from:to], or nil for nil.
func part[T any](s []T, from, to int) []T {
	if s == nil {
		return nil
	}
	return s[from:to]
}

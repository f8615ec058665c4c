package parallel

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
)

// processors sets the number of goroutines of Rows for the duration of a test.
func processors(t testing.TB, n int) {
	old := runtime.GOMAXPROCS(n)
	t.Cleanup(func() { runtime.GOMAXPROCS(old) })
}

func TestRowsCoversEachRowOnce(t *testing.T) {
	for _, p := range []int{1, 2, 5} {
		processors(t, p)
		for _, n := range []int{0, 1, 2, 7, 64, 1000} {
			for _, grain := range []int{1, 2, 3, 64, 2000} {
				seen := make([]atomic.Int32, n)
				Rows(n, grain, func(lo, hi int) {
					for i := lo; i < hi; i++ {
						seen[i].Add(1)
					}
				})
				for i := range seen {
					assert.Equal(t, int32(1), seen[i].Load(), "row %d of %d, grain %d, %d processors", i, n, grain, p)
				}
			}
		}
	}
}

// An unrecovered panic in a goroutine ends the process, so it must be passed on to the caller.
func TestRowsPanicReachesTheCaller(t *testing.T) {
	processors(t, 4)
	assert.PanicsWithValue(t, "row 70", func() {
		Rows(100, 10, func(lo, hi int) {
			if lo == 70 {
				panic("row 70")
			}
		})
	})
}

func TestFirstRowIsTheLowest(t *testing.T) {
	var f FirstRow
	assert.Equal(t, -1, f.Row())
	var wait sync.WaitGroup
	for i := range 50 {
		wait.Go(func() { f.Report(49 - i) })
	}
	wait.Wait()
	assert.Equal(t, 0, f.Row())
	f.Report(3)
	assert.Equal(t, 0, f.Row())
}

// A job can run again after its last helper has left. Each run processes all blocks.
func TestJobIsReused(t *testing.T) {
	const blocks = 50
	var seen [blocks]atomic.Int32
	free := make(chan *Job, 1)
	var j *Job
	j = NewJob(func(b int) { seen[b].Add(1) }, func() { free <- j })
	for run := range 200 {
		j.Run(blocks, 1+run%5)
		for b := range seen {
			assert.Equal(t, int32(run+1), seen[b].Load(), "block %d in run %d", b, run)
		}
		j.Release()
		(<-free).Hold()
	}
	assert.Zero(t, testing.AllocsPerRun(20, func() { j.Run(blocks, 1) }))
}

// After a panic in a helper, the job can be reused.
func TestJobPanicReachesTheCaller(t *testing.T) {
	bad := true
	free := make(chan *Job, 1)
	var j *Job
	j = NewJob(func(b int) {
		if bad && b == 7 {
			panic("block 7")
		}
	}, func() { free <- j })
	assert.PanicsWithValue(t, "block 7", func() { j.Run(100, 4) })
	assert.PanicsWithValue(t, "block 7", func() { j.Run(100, 1) })
	j.Release()
	(<-free).Hold()
	bad = false
	assert.NotPanics(t, func() { j.Run(100, 4) })
}

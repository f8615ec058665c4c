package pcrm

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
)

// processors sets how many goroutines parallelRows uses, for the length of a test.
func processors(t testing.TB, n int) {
	old := runtime.GOMAXPROCS(n)
	t.Cleanup(func() { runtime.GOMAXPROCS(old) })
}

func TestParallelRowsCoversEachRowOnce(t *testing.T) {
	for _, p := range []int{1, 2, 5} {
		processors(t, p)
		for _, n := range []int{0, 1, 2, 7, 64, 1000} {
			for _, grain := range []int{1, 2, 3, 64, 2000} {
				seen := make([]atomic.Int32, n)
				parallelRows(n, grain, func(lo, hi int) {
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

// A panic in a goroutine that nobody recovers ends the process: it has to come out
// where the caller can.
func TestParallelRowsPanicReachesTheCaller(t *testing.T) {
	processors(t, 4)
	assert.PanicsWithValue(t, "row 70", func() {
		parallelRows(100, 10, func(lo, hi int) {
			if lo == 70 {
				panic("row 70")
			}
		})
	})
}

func TestFirstRowIsTheLowest(t *testing.T) {
	var f firstRow
	assert.Equal(t, -1, f.row())
	var wait sync.WaitGroup
	for i := range 50 {
		wait.Go(func() { f.report(49 - i) })
	}
	wait.Wait()
	assert.Equal(t, 0, f.row())
	f.report(3)
	assert.Equal(t, 0, f.row())
}

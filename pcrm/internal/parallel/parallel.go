// Package parallel distributes work among goroutines.
package parallel

import (
	"runtime"
	"sync/atomic"
)

var numThreads atomic.Int32

// SetNumThreads limits the number of threads that one call may use. 0, the default, means
// GOMAXPROCS.
func SetNumThreads(n int) { numThreads.Store(int32(max(n, 0))) }

// NumThreads returns the number of threads that one call may use.
func NumThreads() int {
	if n := int(numThreads.Load()); n > 0 {
		return n
	}
	return runtime.GOMAXPROCS(0)
}

// Job is work divided into blocks, which goroutines take in turn. A job may be run repeatedly
// and then allocates nothing.
type Job struct {
	block    func(b int)
	free     func()
	blocks   int
	next     atomic.Int64
	panicked atomic.Pointer[any]

	// Run does not wait for a helper that wakes late. A helper may join until the job is
	// closed, and the job is reused only after the last helper has seen that it is closed.
	helping atomic.Int64  // the number of helpers at work, plus closed
	done    chan struct{} // receives when the last helper leaves after closing
	holders atomic.Int32  // the caller and the helpers that were started
	help    func()        // stored, because a method value allocates
}

const closed = 1 << 32

// NewJob returns a job that the caller holds. block computes one block. free is called after
// the caller has released the job and the last helper has left; the job may then be reused.
func NewJob(block func(b int), free func()) *Job {
	j := &Job{block: block, free: free, done: make(chan struct{}, 1)}
	j.help = j.helper
	j.Hold()
	return j
}

// Hold acquires a free job.
func (j *Job) Hold() { j.holders.Store(1) }

// Release releases the job.
func (j *Job) Release() {
	if j.holders.Add(-1) == 0 {
		j.free()
	}
}

func (j *Job) helper() {
	defer j.Release()
	for n := j.helping.Load(); n < closed; n = j.helping.Load() {
		if j.helping.CompareAndSwap(n, n+1) {
			j.work()
			if j.helping.Add(-1) == closed {
				j.done <- struct{}{}
			}
			return
		}
	}
}

// Run computes all blocks on at most the given number of goroutines, including the caller's.
// A panic in a block is passed on to the caller. Left in its own goroutine, it would end the
// process although the caller may recover.
func (j *Job) Run(blocks, workers int) {
	j.blocks = blocks
	j.next.Store(0)
	j.helping.Store(0)
	helpers := min(workers, blocks) - 1
	if helpers <= 0 {
		for b := range blocks {
			j.block(b)
		}
		return
	}
	j.panicked.Store(nil)
	j.holders.Add(int32(helpers))
	for range helpers {
		go j.help()
	}
	j.work()
	if j.helping.Add(closed) > closed {
		<-j.done
	}
	if p := j.panicked.Load(); p != nil {
		panic(*p)
	}
}

func (j *Job) work() {
	defer func() {
		if p := recover(); p != nil {
			j.panicked.CompareAndSwap(nil, &p)
		}
	}()
	for b := int(j.next.Add(1)) - 1; b < j.blocks; b = int(j.next.Add(1)) - 1 {
		j.block(b)
	}
}

// Rows calls f on disjoint ranges that cover [0, n), each of at most grain rows, on up to
// [NumThreads] goroutines. A panic in f is passed on to the caller. With one range or one
// thread there is a single call, f(0, n).
func Rows(n, grain int, f func(lo, hi int)) {
	chunks := (n + grain - 1) / grain
	workers := min(NumThreads(), chunks)
	if workers <= 1 {
		f(0, n)
		return
	}
	NewJob(func(c int) { f(c*grain, min((c+1)*grain, n)) }, func() {}).Run(chunks, workers)
}

// FirstRow keeps the lowest row that a worker reports, so that an error names the same row
// however the work was divided. The zero value holds no row.
type FirstRow struct{ past atomic.Int64 } // the row + 1, or 0 for none

// Report records a row.
func (f *FirstRow) Report(row int) {
	for {
		old := f.past.Load()
		if old != 0 && old <= int64(row)+1 || f.past.CompareAndSwap(old, int64(row)+1) {
			return
		}
	}
}

// Row returns the lowest reported row, or -1 if there is none.
func (f *FirstRow) Row() int { return int(f.past.Load()) - 1 }

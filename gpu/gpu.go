// Package gpu computes the losses of package pcrm on CUDA devices: the same formulas, with
// loss and gradient in one launch on the caller's stream.
//
// Neither building nor running needs a CUDA toolkit. The kernels are embedded as PTX, which the
// driver compiles when a device is first opened. libcuda.so.1 is loaded at the first [Open] or
// [Probe] and never before, so a process that has only imported this package may fork. Without
// the library, functions return an [*Unavailable] error, as they do in a build without cgo or
// for a system other than Linux.
//
// All memory belongs to the caller and is passed by its address on the device. A call queues
// its work on a stream of the device's primary context, the one that torch and the CUDA runtime
// use, and returns. It does not wait, does not allocate, and restores the calling thread's
// current context. A call may therefore be captured in a CUDA graph, if the device was opened
// before.
//
// # Rounding
//
// float32, bfloat16 and float16 are computed in float32, and float64 in float64. The losses of
// a batch are added in float64 in an order that depends only on its shape, so repeated calls
// give the same bits. The values of delta and of the scores are not checked, because this would
// stall the device: a delta that is not greater than 0 is not an error here. NaN and infinite
// scores give the results that pcrm.PairLoss documents.
package gpu

import (
	_ "embed"
	"fmt"
	"math"
	"strings"

	"github.com/pcrm-project/pcrm/pcrm"
)

//go:embed kernels.ptx
var ptx string

// leastVersion is the CUDA version of the first driver that accepts PTX 8.1: 12.1, driver 530.
const leastVersion = 12010

// leastCapability is the compute capability for which the PTX is compiled, 7.0.
const leastCapability = 70

// PTXVersion returns the PTX version of the embedded kernels, "8.1".
func PTXVersion() string {
	_, rest, _ := strings.Cut(ptx, "\n.version ")
	version, _, _ := strings.Cut(rest, "\n")
	return version
}

// Dtype is the type of scores and log probabilities in memory.
type Dtype int

const (
	Float32 Dtype = iota
	Float64
	BFloat16
	Float16
)

// Partials is the number of float64 that the memory at [Batch.Partials] must hold. It is the
// maximum number of blocks of a launch, which is enough to fill any device; one more block can
// add up their sums.
const Partials = 1024

// Strided is an input with one element per row. Element i is Stride*i elements after the
// address. With a stride of 0, all rows share one element.
type Strided struct {
	Address uintptr
	Stride  int64
}

// Batch holds the arguments that all forms of the loss share. The types of the elements are:
//
//	Chosen, Rejected        the Dtype
//	Delta, Loss, Grad*      float64 for Float64, else float32
//	Partials                float64
type Batch struct {
	Rows int64 // pairs, at least 1

	// Loss is one element for [pcrm.Mean] and [pcrm.Sum], and Rows for [pcrm.None].
	Loss uintptr

	// GradChosen and GradRejected receive the gradient, contiguous, in the shape of the scores.
	// Both may be 0 if no gradient is needed.
	GradChosen, GradRejected uintptr

	// Partials holds [Partials] elements, in which a launch of several blocks leaves its sums
	// for a second launch. It is not needed for [pcrm.None].
	Partials uintptr

	Chosen, Rejected, Delta Strided

	Reduction      pcrm.Reduction
	LabelSmoothing float64 // in [0, 0.5)
}

// Tokens holds the arguments of the token form in addition to [Batch], whose Chosen and Rejected
// then have a stride from row to row. Steps go from position to position.
type Tokens struct {
	Width                    int64 // positions per row, at least 1 and less than 2^31
	ChosenStep, RejectedStep int64
	ChosenIDs, RejectedIDs   IDs
	PadToken                 int64
}

// IDs are token ids on the device, Size bytes each: 4 for int32, 8 for int64.
type IDs struct {
	Address            uintptr
	Size, Stride, Step int64
}

// Unavailable is the error on a machine that cannot run the kernels. It gives the reason.
type Unavailable struct{ Reason string }

func (e *Unavailable) Error() string { return e.Reason }

// Error is a failed call of the CUDA driver, with CUDA's own error name and text.
type Error struct {
	Call, Name, Text string
	Code             int
}

// Error reads "cuLaunchKernel: CUDA_ERROR_INVALID_VALUE (1): invalid argument".
func (e *Error) Error() string {
	return fmt.Sprintf("%s: %s (%d): %s", e.Call, e.Name, e.Code, e.Text)
}

// Info describes the driver and its devices.
type Info struct {
	Driver  string // the CUDA version that it supports, "12.4"
	Devices []DeviceInfo
}

// DeviceInfo describes a device.
type DeviceInfo struct {
	Name       string
	Capability string // "9.0"
}

func dotted(version, unit int) string {
	return fmt.Sprintf("%d.%d", version/unit, version%unit)
}

func argErr(argument, format string, args ...any) error {
	return &pcrm.ArgumentError{Argument: argument, Index: -1, Reason: fmt.Sprintf(format, args...)}
}

func (b Batch) validate(dtype Dtype) error {
	switch {
	case dtype < Float32 || dtype > Float16:
		return argErr("dtype", "must be Float32, Float64, BFloat16 or Float16, got %d", int(dtype))
	case b.Rows < 1:
		return argErr("chosen_rewards", "must have at least one score, got none")
	case b.Reduction < pcrm.Mean || b.Reduction > pcrm.None:
		return argErr("reduction", "must be Mean, Sum or None, got %d", int(b.Reduction))
	case !(b.LabelSmoothing >= 0 && b.LabelSmoothing < 0.5):
		return argErr("label_smoothing", "must be in [0, 0.5), got %v", b.LabelSmoothing)
	case b.Loss == 0 || b.Chosen.Address == 0 || b.Rejected.Address == 0 || b.Delta.Address == 0:
		return argErr("loss, chosen, rejected and delta", "must have an address other than 0")
	case (b.GradChosen == 0) != (b.GradRejected == 0):
		return argErr("gradChosen and gradRejected", "must both be given or both be 0")
	case b.Partials == 0 && b.Reduction != pcrm.None:
		return argErr("partials", "must be the address of %d float64, got 0", Partials)
	}
	return nil
}

func (t Tokens) validate() error {
	if t.Width < 1 || t.Width > math.MaxInt32 {
		return argErr("width", "must be in [1, 2^31), got %d", t.Width)
	}
	for _, ids := range []IDs{t.ChosenIDs, t.RejectedIDs} {
		if ids.Address == 0 || ids.Size != 4 && ids.Size != 8 {
			return argErr("ids", "must have an address other than 0 and 4 or 8 bytes each, got address %d and %d bytes", ids.Address, ids.Size)
		}
	}
	return nil
}

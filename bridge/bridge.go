// Package bridge is what Python may call: gopy turns its exported functions into
// the private extension module pcrm._native._bridge. It holds no mathematics.
//
// Arrays arrive as addresses and lengths, because a gopy slice is a handle that is
// filled one element at a time. Python owns the memory and keeps it alive during a
// call; nothing here keeps an address. Every function
//
//   - returns (value, error): gopy leaks the string of a bare error;
//   - recovers: a Go panic would end the process;
//   - prefixes its error with the Python exception that it stands for.
//
// dtype is 4 for float32 and 8 for float64, the size of an element.
package bridge

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/pcrm-project/pcrm/pcrm"
)

// The prefixes that backends.py turns into exceptions.
const (
	valueError   = "ValueError: "
	typeError    = "TypeError: "
	runtimeError = "RuntimeError: "
)

// convert gives an error its prefix, and makes one of a panic. It is deferred by
// every exported function.
func convert(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("%spcrm: internal error, please report it: %v", runtimeError, p)
		return
	}
	var argument *pcrm.ArgumentError
	if errors.As(*err, &argument) {
		*err = errors.New(valueError + (*err).Error())
	}
}

func badDtype(dtype int64) error {
	return fmt.Errorf("%sdtype code is %d, must be 4 (float32) or 8 (float64)", typeError, dtype)
}

// slice views n elements at an address; address 0 is the nil slice.
func slice[T any](address uintptr, n int64) []T {
	if address == 0 {
		return nil
	}
	// The address is Python's memory, which Go's collector does not move: the
	// detour keeps vet from taking it for a Go pointer that was hidden.
	return unsafe.Slice(*(**T)(unsafe.Pointer(&address)), n)
}

// RewardLoss calls pcrm.RewardLoss on n pairs. loss is one element for the
// reductions mean (0) and sum (1), and n elements for none (2); gradChosen and
// gradRejected may be 0.
func RewardLoss(dtype, n int64, loss, gradChosen, gradRejected, chosen, rejected, delta uintptr,
	labelSmoothing, centerRewardsCoefficient float64, reduction int64, checkFinite bool) (ok bool, err error) {
	defer convert(&err)
	o := pcrm.RewardOptions{
		Reduction:                pcrm.Reduction(reduction),
		LabelSmoothing:           labelSmoothing,
		CenterRewardsCoefficient: centerRewardsCoefficient,
		CheckFinite:              checkFinite,
	}
	switch dtype {
	case 4:
		err = rewardLoss[float32](n, loss, gradChosen, gradRejected, chosen, rejected, delta, o)
	case 8:
		err = rewardLoss[float64](n, loss, gradChosen, gradRejected, chosen, rejected, delta, o)
	default:
		err = badDtype(dtype)
	}
	return err == nil, err
}

func rewardLoss[F pcrm.Float](n int64, loss, gradChosen, gradRejected, chosen, rejected, delta uintptr, o pcrm.RewardOptions) error {
	var losses []F
	if o.Reduction == pcrm.None {
		losses = slice[F](loss, n)
	}
	total, err := pcrm.RewardLoss(losses, slice[F](gradChosen, n), slice[F](gradRejected, n),
		slice[F](chosen, n), slice[F](rejected, n), slice[F](delta, n), o)
	if err == nil && o.Reduction != pcrm.None {
		slice[F](loss, 1)[0] = F(total)
	}
	return err
}

// Deltas calls pcrm.Deltas on n similarities.
func Deltas(dtype, n int64, dst, similarities uintptr, beta1, beta2, beta3, floor, ceiling float64) (ok bool, err error) {
	defer convert(&err)
	c := pcrm.Constraint{Beta1: beta1, Beta2: beta2, Beta3: beta3, Floor: floor, Cap: ceiling}
	switch dtype {
	case 4:
		err = pcrm.Deltas(slice[float32](dst, n), slice[float32](similarities, n), c)
	case 8:
		err = pcrm.Deltas(slice[float64](dst, n), slice[float64](similarities, n), c)
	default:
		err = badDtype(dtype)
	}
	return err == nil, err
}

// Fit calls pcrm.Fit on n float64 similarities and writes beta1, beta2, beta3,
// floor and cap to the five float64 at dst.
func Fit(n int64, dst, similarities uintptr, targetAlike, targetUnlike, low, high float64) (ok bool, err error) {
	defer convert(&err)
	c, err := pcrm.Fit(slice[float64](similarities, n), targetAlike, targetUnlike, low, high)
	if err == nil {
		copy(slice[float64](dst, 5), []float64{c.Beta1, c.Beta2, c.Beta3, c.Floor, c.Cap})
	}
	return err == nil, err
}

// LengthRatios calls pcrm.LengthRatios on n pairs of rows of int64 token ids and
// writes float32. The offsets are n+1 int64 each; padToken -1 means no padding.
func LengthRatios(n int64, dst, chosen, chosenOffsets uintptr, chosenLen int64,
	rejected, rejectedOffsets uintptr, rejectedLen int64, padToken int64) (ok bool, err error) {
	defer convert(&err)
	err = pcrm.LengthRatios(slice[float32](dst, n),
		slice[int64](chosen, chosenLen), slice[int64](chosenOffsets, n+1),
		slice[int64](rejected, rejectedLen), slice[int64](rejectedOffsets, n+1), padToken)
	return err == nil, err
}

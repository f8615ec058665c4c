// Package bridge contains the functions that Python may call. gopy turns the exported
// functions into the private extension module pcrm._native._bridge. The package contains no
// mathematics.
//
// Arrays are passed as addresses and lengths, because a gopy slice is a handle that is
// filled one element at a time. Python owns the memory and keeps it alive during a call.
// This package keeps no addresses. Every function
//
//   - returns (value, error), because gopy leaks the string of a bare error;
//   - recovers from panics, because a Go panic would end the process;
//   - prefixes its error with the name of the corresponding Python exception.
//
// dtype is the size of an element: 4 for float32 and 8 for float64. For functions whose name
// begins with CUDA it is a gpu.Dtype.
package bridge

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"unsafe"

	"github.com/pcrm-project/pcrm/gpu"
	"github.com/pcrm-project/pcrm/pcrm"
	"github.com/pcrm-project/pcrm/pcrm/prior"
	"github.com/pcrm-project/pcrm/pcrm/trace"
)

// The prefixes that _engine/native.py turns into exceptions.
const (
	valueError   = "ValueError: "
	typeError    = "TypeError: "
	osError      = "OSError: "
	runtimeError = "RuntimeError: "
)

// convert adds the prefix to an error, and turns a panic into an error. Every exported
// function defers it.
func convert(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("%spcrm: internal error, please report it: %v", runtimeError, p)
		return
	}
	var argument *pcrm.ArgumentError
	if errors.As(*err, &argument) {
		*err = errors.New(valueError + (*err).Error())
	}
	// The texts of these errors may begin with anything.
	_, unavailable := errors.AsType[*gpu.Unavailable](*err)
	_, failed := errors.AsType[*gpu.Error](*err)
	if unavailable || failed {
		*err = errors.New(runtimeError + (*err).Error())
	}
}

func badDtype(dtype int64) error {
	return fmt.Errorf("%sdtype code must be 4 (float32) or 8 (float64), got %d", typeError, dtype)
}

// slice returns a view of n elements at an address. Address 0 gives the nil slice.
func slice[T any](address uintptr, n int64) []T {
	if address == 0 {
		return nil
	}
	// The address points to Python's memory, which Go's garbage collector does not move. The
	// indirection keeps vet from reporting a misused pointer.
	return unsafe.Slice(*(**T)(unsafe.Pointer(&address)), n)
}

// RewardLoss calls pcrm.RewardLoss on n pairs. loss has one element for the reductions mean
// (0) and sum (1), and n elements for none (2). gradChosen and gradRejected may be 0.
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
	return store[F](loss, n, o.Reduction, func(losses []F) (float64, error) {
		return pcrm.RewardLoss(losses, slice[F](gradChosen, n), slice[F](gradRejected, n),
			slice[F](chosen, n), slice[F](rejected, n), slice[F](delta, n), o)
	})
}

// TokenLoss calls pcrm.TokenLoss on rows of width tokens. The scores and the int64 token ids
// have rows*width elements, and delta has rows. loss has one element, or rows elements for
// none. gradChosen and gradRejected may be 0.
func TokenLoss(dtype, rows, width int64, loss, gradChosen, gradRejected, chosen, rejected, chosenIDs, rejectedIDs, delta uintptr,
	padToken, reduction int64) (ok bool, err error) {
	defer convert(&err)
	o := pcrm.RewardOptions{Reduction: pcrm.Reduction(reduction)}
	switch dtype {
	case 4:
		err = tokenLoss[float32](rows, width, loss, gradChosen, gradRejected, chosen, rejected, chosenIDs, rejectedIDs, delta, padToken, o)
	case 8:
		err = tokenLoss[float64](rows, width, loss, gradChosen, gradRejected, chosen, rejected, chosenIDs, rejectedIDs, delta, padToken, o)
	default:
		err = badDtype(dtype)
	}
	return err == nil, err
}

func tokenLoss[F pcrm.Float](rows, width int64, loss, gradChosen, gradRejected, chosen, rejected, chosenIDs, rejectedIDs, delta uintptr,
	padToken int64, o pcrm.RewardOptions) error {
	n := rows * width
	return store[F](loss, rows, o.Reduction, func(losses []F) (float64, error) {
		return pcrm.TokenLoss(losses, slice[F](gradChosen, n), slice[F](gradRejected, n), slice[F](chosen, n), slice[F](rejected, n),
			slice[int64](chosenIDs, n), slice[int64](rejectedIDs, n), slice[F](delta, rows), padToken, o)
	})
}

// DPOLoss calls pcrm.DPOLoss on n pairs. loss has one element, or n elements for none.
// gradChosen and gradRejected may be 0.
func DPOLoss(dtype, n int64, loss, gradChosen, gradRejected, chosenRewards, rejectedRewards,
	policyChosen, policyRejected, referenceChosen, referenceRejected, delta uintptr,
	beta, labelSmoothing float64, reduction int64) (ok bool, err error) {
	defer convert(&err)
	o := pcrm.DPOOptions{Beta: beta, LabelSmoothing: labelSmoothing, Reduction: pcrm.Reduction(reduction)}
	switch dtype {
	case 4:
		err = dpoLoss[float32](n, loss, gradChosen, gradRejected, chosenRewards, rejectedRewards,
			policyChosen, policyRejected, referenceChosen, referenceRejected, delta, o)
	case 8:
		err = dpoLoss[float64](n, loss, gradChosen, gradRejected, chosenRewards, rejectedRewards,
			policyChosen, policyRejected, referenceChosen, referenceRejected, delta, o)
	default:
		err = badDtype(dtype)
	}
	return err == nil, err
}

func dpoLoss[F pcrm.Float](n int64, loss, gradChosen, gradRejected, chosenRewards, rejectedRewards,
	policyChosen, policyRejected, referenceChosen, referenceRejected, delta uintptr, o pcrm.DPOOptions) error {
	return store[F](loss, n, o.Reduction, func(losses []F) (float64, error) {
		return pcrm.DPOLoss(losses, slice[F](gradChosen, n), slice[F](gradRejected, n), slice[F](chosenRewards, n), slice[F](rejectedRewards, n),
			slice[F](policyChosen, n), slice[F](policyRejected, n), slice[F](referenceChosen, n), slice[F](referenceRejected, n),
			slice[F](delta, n), o)
	})
}

// store writes the result of a loss to an address: its value or, for none, the n losses.
func store[F pcrm.Float](loss uintptr, n int64, r pcrm.Reduction, compute func(losses []F) (float64, error)) error {
	if r == pcrm.None {
		_, err := compute(slice[F](loss, n))
		return err
	}
	total, err := compute(nil)
	if err == nil {
		slice[F](loss, 1)[0] = F(total)
	}
	return err
}

// Deltas calls pcrm.Deltas on n similarities. constraint is the address of seven float64:
// beta1, beta2, beta3, floor, cap, low and high.
func Deltas(dtype, n int64, dst, similarities, constraint uintptr) (ok bool, err error) {
	defer convert(&err)
	p := slice[float64](constraint, 7)
	c := pcrm.Constraint{Beta1: p[0], Beta2: p[1], Beta3: p[2], Floor: p[3], Cap: p[4], Low: p[5], High: p[6]}
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

// WinProbabilities calls pcrm.WinProbabilities on n margins and deltas.
func WinProbabilities(dtype, n int64, dst, margins, deltas uintptr) (ok bool, err error) {
	defer convert(&err)
	switch dtype {
	case 4:
		err = pcrm.WinProbabilities(slice[float32](dst, n), slice[float32](margins, n), slice[float32](deltas, n))
	case 8:
		err = pcrm.WinProbabilities(slice[float64](dst, n), slice[float64](margins, n), slice[float64](deltas, n))
	default:
		err = badDtype(dtype)
	}
	return err == nil, err
}

// Fit calls pcrm.Fit on n float64 similarities and writes beta1, beta2, beta3, floor and cap to
// the five float64 at dst.
func Fit(n int64, dst, similarities uintptr, targetAlike, targetUnlike, low, high float64) (ok bool, err error) {
	defer convert(&err)
	c, err := pcrm.Fit(slice[float64](similarities, n), targetAlike, targetUnlike, low, high)
	if err == nil {
		copy(slice[float64](dst, 5), []float64{c.Beta1, c.Beta2, c.Beta3, c.Floor, c.Cap})
	}
	return err == nil, err
}

// VerifyTrace calls trace.Verify and returns its report as a JSON object with the keys ok,
// files, pairs, rows (a list of objects with form, dtype, backend, files, pairs, loss_error,
// gradient_error, loss_tolerance and gradient_tolerance; an infinite error is null),
// failures (a list of strings), failed (the number of failures) and text (the table).
func VerifyTrace(dir string) (report string, err error) {
	defer convert(&err)
	r, err := trace.Verify(dir)
	if err != nil {
		return "", fileError(err)
	}
	type row struct {
		Form              string   `json:"form"`
		Dtype             string   `json:"dtype"`
		Backend           string   `json:"backend"`
		Files             int      `json:"files"`
		Pairs             int      `json:"pairs"`
		LossError         *float64 `json:"loss_error"`
		GradientError     *float64 `json:"gradient_error"`
		LossTolerance     float64  `json:"loss_tolerance"`
		GradientTolerance float64  `json:"gradient_tolerance"`
	}
	rows := make([]row, len(r.Rows))
	for i, x := range r.Rows {
		rows[i] = row{x.Form, x.Dtype, x.Backend, x.Files, x.Pairs, finite(x.LossError), finite(x.GradientError),
			x.LossTolerance, x.GradientTolerance}
	}
	text, err := json.Marshal(map[string]any{
		"ok": r.OK(), "files": r.Files, "pairs": r.Pairs, "rows": rows,
		"failures": append([]string{}, r.Failures...), "failed": r.Failed, "text": r.String(),
	})
	return string(text), err
}

// finite returns nil, which is null in JSON, for numbers that JSON cannot represent.
func finite(x float64) *float64 {
	if math.IsInf(x, 0) {
		return nil
	}
	return &x
}

// fileError adds the prefix to an error of the file system.
func fileError(err error) error {
	if _, refused := errors.AsType[*fs.PathError](err); refused {
		return errors.New(osError + err.Error())
	}
	return err
}

// LengthRatios calls prior.LengthRatios on n pairs of rows of int64 token ids and writes
// float32. The offsets have n+1 int64 each. A padToken of -1 means no padding.
func LengthRatios(n int64, dst, chosen, chosenOffsets uintptr, chosenLen int64,
	rejected, rejectedOffsets uintptr, rejectedLen, padToken int64) (ok bool, err error) {
	defer convert(&err)
	err = prior.LengthRatios(slice[float32](dst, n),
		slice[int64](chosen, chosenLen), slice[int64](chosenOffsets, n+1),
		slice[int64](rejected, rejectedLen), slice[int64](rejectedOffsets, n+1), padToken)
	return err == nil, err
}

// RandomUniforms calls prior.RandomUniforms. The columns are as in LengthRatios.
func RandomUniforms(n int64, dst uintptr, seed uint64, chosen, chosenOffsets uintptr, chosenLen int64,
	rejected, rejectedOffsets uintptr, rejectedLen, padToken int64) (ok bool, err error) {
	defer convert(&err)
	err = prior.RandomUniforms(slice[float32](dst, n), seed,
		slice[int64](chosen, chosenLen), slice[int64](chosenOffsets, n+1),
		slice[int64](rejected, rejectedLen), slice[int64](rejectedOffsets, n+1), padToken)
	return err == nil, err
}

// Cosines calls prior.Cosines on n pairs of rows of dim elements. It writes float64 for
// float64 rows and float32 otherwise. dtype may also be 2, for float16.
func Cosines(dtype, n, dim int64, dst, a, b uintptr, angular bool) (ok bool, err error) {
	defer convert(&err)
	switch dtype {
	case 2:
		err = prior.Cosines(slice[float32](dst, n), slice[prior.Float16](a, n*dim), slice[prior.Float16](b, n*dim), int(dim), angular)
	case 4:
		err = prior.Cosines(slice[float32](dst, n), slice[float32](a, n*dim), slice[float32](b, n*dim), int(dim), angular)
	case 8:
		err = prior.Cosines(slice[float64](dst, n), slice[float64](a, n*dim), slice[float64](b, n*dim), int(dim), angular)
	default:
		err = badDtype(dtype)
	}
	return err == nil, err
}

// Lexicals calls prior.Lexicals on n pairs of UTF-8 texts and writes float32. The offsets have
// n+1 int64 each.
func Lexicals(n int64, dst, chosen, chosenOffsets uintptr, chosenLen int64,
	rejected, rejectedOffsets uintptr, rejectedLen int64, words bool) (ok bool, err error) {
	defer convert(&err)
	err = prior.Lexicals(slice[float32](dst, n),
		slice[byte](chosen, chosenLen), slice[int64](chosenOffsets, n+1),
		slice[byte](rejected, rejectedLen), slice[int64](rejectedOffsets, n+1), prior.LexicalOptions{Words: words})
	return err == nil, err
}

// SetNumThreads calls pcrm.SetNumThreads.
func SetNumThreads(n int64) (ok bool, err error) {
	defer convert(&err)
	pcrm.SetNumThreads(int(n))
	return true, nil
}

// SetTier calls pcrm.SetTier.
func SetTier(name string) (ok bool, err error) {
	defer convert(&err)
	err = pcrm.SetTier(name)
	return err == nil, err
}

// Tier calls pcrm.Tier.
func Tier() (name string, err error) {
	defer convert(&err)
	return pcrm.Tier(), nil
}

// NumThreads calls pcrm.NumThreads.
func NumThreads() (n int64, err error) {
	defer convert(&err)
	return int64(pcrm.NumThreads()), nil
}

// CUDAProbe calls gpu.Probe and returns a JSON object with driver (a version) and devices (a
// list of objects with name and capability).
func CUDAProbe() (info string, err error) {
	defer convert(&err)
	found, err := gpu.Probe()
	if err != nil {
		return "", err
	}
	devices := make([]map[string]string, len(found.Devices))
	for i, d := range found.Devices {
		devices[i] = map[string]string{"name": d.Name, "capability": d.Capability}
	}
	text, err := json.Marshal(map[string]any{"driver": found.Driver, "devices": devices})
	return string(text), err
}

// PTXVersion calls gpu.PTXVersion.
func PTXVersion() (version string, err error) {
	defer convert(&err)
	return gpu.PTXVersion(), nil
}

// CUDAOpen calls gpu.Open, which loads the kernels on a device. It returns the number of float64
// in the partials of a launch.
func CUDAOpen(device int64) (partials int64, err error) {
	defer convert(&err)
	_, err = gpu.Open(int(device))
	return gpu.Partials, err
}

func batch(rows int64, loss, gradChosen, gradRejected, partials, chosen uintptr, chosenStride int64,
	rejected uintptr, rejectedStride int64, delta uintptr, labelSmoothing float64, reduction int64) gpu.Batch {
	return gpu.Batch{
		Rows: rows, Loss: loss, GradChosen: gradChosen, GradRejected: gradRejected, Partials: partials,
		Chosen:         gpu.Strided{Address: chosen, Stride: chosenStride},
		Rejected:       gpu.Strided{Address: rejected, Stride: rejectedStride},
		Delta:          gpu.Strided{Address: delta, Stride: 1},
		LabelSmoothing: labelSmoothing, Reduction: pcrm.Reduction(reduction),
	}
}

// CUDARewardLoss calls gpu.Device.RewardLoss. Addresses refer to device memory. delta is
// contiguous.
func CUDARewardLoss(device int64, stream uintptr, dtype, rows int64, loss, gradChosen, gradRejected, partials, chosen uintptr,
	chosenStride int64, rejected uintptr, rejectedStride int64, delta uintptr,
	labelSmoothing, centerRewardsCoefficient float64, reduction int64) (ok bool, err error) {
	defer convert(&err)
	d, err := gpu.Open(int(device))
	if err == nil {
		err = d.RewardLoss(stream, gpu.Dtype(dtype), batch(rows, loss, gradChosen, gradRejected, partials, chosen, chosenStride,
			rejected, rejectedStride, delta, labelSmoothing, reduction), centerRewardsCoefficient)
	}
	return err == nil, err
}

// CUDATokenLoss calls gpu.Device.TokenLoss.
func CUDATokenLoss(device int64, stream uintptr, dtype, rows, width int64, loss, gradChosen, gradRejected, partials, chosen uintptr,
	chosenStride, chosenStep int64, rejected uintptr, rejectedStride, rejectedStep int64,
	chosenIDs uintptr, chosenIDSize, chosenIDStride, chosenIDStep int64,
	rejectedIDs uintptr, rejectedIDSize, rejectedIDStride, rejectedIDStep int64,
	delta uintptr, padToken, reduction int64) (ok bool, err error) {
	defer convert(&err)
	d, err := gpu.Open(int(device))
	if err == nil {
		err = d.TokenLoss(stream, gpu.Dtype(dtype), batch(rows, loss, gradChosen, gradRejected, partials, chosen, chosenStride,
			rejected, rejectedStride, delta, 0, reduction), gpu.Tokens{
			Width: width, ChosenStep: chosenStep, RejectedStep: rejectedStep, PadToken: padToken,
			ChosenIDs:   gpu.IDs{Address: chosenIDs, Size: chosenIDSize, Stride: chosenIDStride, Step: chosenIDStep},
			RejectedIDs: gpu.IDs{Address: rejectedIDs, Size: rejectedIDSize, Stride: rejectedIDStride, Step: rejectedIDStep},
		})
	}
	return err == nil, err
}

// CUDADPOLoss calls gpu.Device.DPOLoss.
func CUDADPOLoss(device int64, stream uintptr, dtype, rows int64, loss, gradChosen, gradRejected, partials, chosenRewards, rejectedRewards,
	policyChosen uintptr, policyChosenStride int64, policyRejected uintptr, policyRejectedStride int64,
	referenceChosen uintptr, referenceChosenStride int64, referenceRejected uintptr, referenceRejectedStride int64,
	delta uintptr, beta, labelSmoothing float64, reduction int64) (ok bool, err error) {
	defer convert(&err)
	d, err := gpu.Open(int(device))
	if err == nil {
		err = d.DPOLoss(stream, gpu.Dtype(dtype), batch(rows, loss, gradChosen, gradRejected, partials, policyChosen, policyChosenStride,
			policyRejected, policyRejectedStride, delta, labelSmoothing, reduction),
			gpu.Strided{Address: referenceChosen, Stride: referenceChosenStride},
			gpu.Strided{Address: referenceRejected, Stride: referenceRejectedStride}, chosenRewards, rejectedRewards, beta)
	}
	return err == nil, err
}

// CUDAScale calls gpu.Device.Scale.
func CUDAScale(device int64, stream uintptr, dtype, count, width int64, chosen, rejected, gradChosen, gradRejected, incoming uintptr,
	incomingStride int64) (ok bool, err error) {
	defer convert(&err)
	d, err := gpu.Open(int(device))
	if err == nil {
		err = d.Scale(stream, gpu.Dtype(dtype), count, width, chosen, rejected, gradChosen, gradRejected,
			gpu.Strided{Address: incoming, Stride: incomingStride})
	}
	return err == nil, err
}

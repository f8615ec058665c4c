//go:build cgo && linux

package gpu

// #cgo CFLAGS: -O2 -fno-fast-math
// #cgo LDFLAGS: -ldl
// #cgo noescape pcrm_driver_launch
// #cgo nocallback pcrm_driver_launch
// #include <stdlib.h>
// #include "driver.h"
import "C"

import (
	"fmt"
	"math"
	"sync"
	"unsafe"

	"github.com/pcrm-project/pcrm/pcrm"
)

// driver is the CUDA driver, once it has been loaded.
var driver struct {
	sync.Mutex
	tried   bool
	err     error
	version int
	devices []*Device // by index; nil if not opened yet
}

// Device is a CUDA device with loaded kernels. Several goroutines may use it.
type Device struct {
	context C.CUcontext
	kernels [C.PCRM_KERNEL_COUNT]C.CUfunction
}

// Dtype has the order of kernels.h. An index other than 0 does not compile.
var (
	_ = [1]struct{}{}[Float32-C.PCRM_FLOAT32]
	_ = [1]struct{}{}[Float64-C.PCRM_FLOAT64]
	_ = [1]struct{}{}[BFloat16-C.PCRM_BFLOAT16]
	_ = [1]struct{}{}[Float16-C.PCRM_FLOAT16]
)

// failure returns the error of a call of driver.c. detail is added to CUDA's text.
func failure(code C.int, call *C.char, detail string) error {
	var name, text *C.char
	C.pcrm_driver_explain(code, &name, &text)
	e := &Error{Call: C.GoString(call), Name: C.GoString(name), Text: C.GoString(text), Code: int(code)}
	if detail != "" {
		e.Text += ": " + detail
	}
	return e
}

// open loads the driver once. The lock must be held.
func open() error {
	if driver.tried {
		return driver.err
	}
	driver.tried = true
	var version, devices C.int
	var reason [512]C.char
	var call *C.char
	switch code := C.pcrm_driver_open(leastVersion, &version, &devices, &reason[0], C.int(len(reason)), &call); {
	case code == C.PCRM_NO_LIBRARY:
		driver.err = &Unavailable{"there is no CUDA driver: " + C.GoString(&reason[0])}
	case code == C.PCRM_OLD_DRIVER:
		driver.err = &Unavailable{fmt.Sprintf("the driver must support CUDA %s (driver 530) or newer, got CUDA %s",
			dotted(leastVersion/10, 100), dotted(int(version)/10, 100))}
	case code != 0:
		driver.err = &Unavailable{failure(code, call, "").Error()}
	case devices == 0:
		driver.err = &Unavailable{"the CUDA driver finds no device"}
	}
	driver.version, driver.devices = int(version), make([]*Device, int(devices))
	return driver.err
}

// Probe loads the driver and describes its devices. It loads nothing on the devices.
//
// Errors: an [*Unavailable] if there is no usable driver or no device; an [*Error] for a failed
// call of the driver.
func Probe() (Info, error) {
	driver.Lock()
	defer driver.Unlock()
	if err := open(); err != nil {
		return Info{}, err
	}
	info := Info{Driver: dotted(driver.version/10, 100), Devices: make([]DeviceInfo, len(driver.devices))}
	for i := range info.Devices {
		name, capability, err := describe(i)
		if err != nil {
			return Info{}, err
		}
		info.Devices[i] = DeviceInfo{name, dotted(capability, 10)}
	}
	return info, nil
}

func describe(index int) (string, int, error) {
	var name [256]C.char
	var capability C.int
	var call *C.char
	if code := C.pcrm_driver_describe(C.int(index), &name[0], C.int(len(name)), &capability, &call); code != 0 {
		return "", 0, failure(code, call, "")
	}
	return C.GoString(&name[0]), int(capability), nil
}

// Open returns the device with the given index, as CUDA counts devices. The first call loads the
// kernels, which the driver compiles in a few tenths of a second. Later calls only take a lock.
//
// Errors: an [*Unavailable] if there is no driver or no device, or if one of them is too old; an
// [*pcrm.ArgumentError] for an index without a device; an [*Error] for a failed call of the
// driver.
func Open(index int) (*Device, error) {
	driver.Lock()
	defer driver.Unlock()
	if err := open(); err != nil {
		return nil, err
	}
	if index < 0 || index >= len(driver.devices) {
		return nil, argErr("device", "must be the index of one of the %d devices, got %d", len(driver.devices), index)
	}
	if d := driver.devices[index]; d != nil {
		return d, nil
	}
	name, capability, err := describe(index)
	if err != nil {
		return nil, err
	}
	if capability < leastCapability {
		return nil, &Unavailable{fmt.Sprintf("device %d, %s, must have compute capability %s or newer, got %s",
			index, name, dotted(leastCapability, 10), dotted(capability, 10))}
	}
	source := C.CString(ptx)
	defer C.free(unsafe.Pointer(source))
	var log [1024]C.char
	var call *C.char
	d := new(Device)
	if code := C.pcrm_driver_load(C.int(index), source, &d.context, &d.kernels[0], &log[0], C.int(len(log)), &call); code != 0 {
		return nil, failure(code, call, C.GoString(&log[0]))
	}
	driver.devices[index] = d
	return d, nil
}

// launch queues a kernel.
func (d *Device) launch(kernel int, blocks, threads int64, stream uintptr, args unsafe.Pointer) error {
	var call *C.char
	// The stream is a CUDA handle, not a Go pointer. The indirection keeps vet from reporting one.
	code := C.pcrm_driver_launch(d.context, d.kernels[kernel], C.uint(blocks), C.uint(threads),
		*(*C.CUstream)(unsafe.Pointer(&stream)), args, &call)
	if code != 0 {
		return failure(code, call, "")
	}
	return nil
}

// warps rounds a number of threads up to whole warps, which the summation needs.
func warps(threads int64) int64 {
	return min((threads+31)/32*32, C.PCRM_THREADS)
}

// rowThreads is the block size if several blocks share the rows of a form other than the token
// form. It is small enough for several blocks to fit into the registers of a multiprocessor.
const rowThreads = 256

// rowBlocks returns the shape of a launch of all forms other than the token form. It uses one
// block as long as this saves the second launch without being much slower.
func rowBlocks(rows int64) (blocks, threads int64) {
	if rows <= C.PCRM_THREADS*C.PCRM_ITEMS {
		return 1, warps(rows)
	}
	const tile = rowThreads * C.PCRM_ITEMS
	return min((rows+tile-1)/tile, Partials), rowThreads
}

// manyRows is the number of rows from which blocks, one per row, fill a large device (an H200 has
// 132 multiprocessors), so that smaller blocks are faster.
const manyRows = 256

func tokenBlocks(rows, width int64) (blocks, threads int64) {
	threads = warps(width)
	if rows >= manyRows {
		threads = warps((width + C.PCRM_ITEMS - 1) / C.PCRM_ITEMS)
	}
	return min(rows, Partials), threads
}

func address(a uintptr) C.pcrm_address { return C.pcrm_address(a) }

func (b Batch) common() C.pcrm_common {
	c := C.pcrm_common{
		rows: C.pcrm_int(b.Rows), loss: address(b.Loss), partials: address(b.Partials),
		grad_chosen: address(b.GradChosen), grad_rejected: address(b.GradRejected),
		chosen: address(b.Chosen.Address), chosen_stride: C.pcrm_int(b.Chosen.Stride),
		rejected: address(b.Rejected.Address), rejected_stride: C.pcrm_int(b.Rejected.Stride),
		delta: address(b.Delta.Address), delta_stride: C.pcrm_int(b.Delta.Stride),
		scale: 1, smoothing: C.double(b.LabelSmoothing),
	}
	if b.Reduction != pcrm.None {
		c.sum = 1
	}
	if b.Reduction == pcrm.Mean {
		c.scale = C.double(1 / float64(b.Rows))
	}
	return c
}

// addUp adds up the sums of several blocks.
func (d *Device) addUp(stream uintptr, dtype Dtype, b Batch, blocks int64, scale C.double) error {
	if blocks == 1 || b.Reduction == pcrm.None {
		return nil
	}
	kernel := C.PCRM_KERNEL_sum_float32
	if dtype == Float64 {
		kernel = C.PCRM_KERNEL_sum_float64
	}
	args := C.pcrm_sum_args{count: C.pcrm_int(blocks), loss: address(b.Loss), partials: address(b.Partials), scale: scale}
	return d.launch(kernel, 1, warps(blocks), stream, unsafe.Pointer(&args))
}

// RewardLoss is [pcrm.RewardLoss] on the device: the loss of each pair, or the mean or sum of the
// losses, and the gradient with respect to both scores. center is the coefficient c >= 0 of
// centering.
//
// Errors: a [*pcrm.ArgumentError] for an argument out of range or a missing address; an [*Error]
// for a failed launch.
func (d *Device) RewardLoss(stream uintptr, dtype Dtype, b Batch, center float64) error {
	if err := b.validate(dtype); err != nil {
		return err
	}
	if !(center >= 0) || math.IsInf(center, 1) {
		return argErr("center_rewards_coefficient", "must be at least 0 and finite, got %v", center)
	}
	args := C.pcrm_pair_args{common: b.common(), center: C.double(center)}
	blocks, threads := rowBlocks(b.Rows)
	if err := d.launch(C.PCRM_KERNEL_pair_float32+int(dtype), blocks, threads, stream, unsafe.Pointer(&args)); err != nil {
		return err
	}
	return d.addUp(stream, dtype, b, blocks, args.common.scale)
}

// TokenLoss is [pcrm.TokenLoss] on the device. The device also finds the spans. The gradients have
// Rows*Width elements, which are 0 outside the spans.
//
// Errors: as in [Device.RewardLoss].
func (d *Device) TokenLoss(stream uintptr, dtype Dtype, b Batch, t Tokens) error {
	if err := b.validate(dtype); err != nil {
		return err
	}
	if err := t.validate(); err != nil {
		return err
	}
	w, l := t.ChosenIDs, t.RejectedIDs
	args := C.pcrm_token_args{
		common: b.common(), width: C.pcrm_int(t.Width),
		chosen_step: C.pcrm_int(t.ChosenStep), rejected_step: C.pcrm_int(t.RejectedStep),
		chosen_ids: address(w.Address), chosen_ids_size: C.pcrm_int(w.Size),
		chosen_ids_stride: C.pcrm_int(w.Stride), chosen_ids_step: C.pcrm_int(w.Step),
		rejected_ids: address(l.Address), rejected_ids_size: C.pcrm_int(l.Size),
		rejected_ids_stride: C.pcrm_int(l.Stride), rejected_ids_step: C.pcrm_int(l.Step),
		pad: C.pcrm_int(t.PadToken),
	}
	blocks, threads := tokenBlocks(b.Rows, t.Width)
	if err := d.launch(C.PCRM_KERNEL_token_float32+int(dtype), blocks, threads, stream, unsafe.Pointer(&args)); err != nil {
		return err
	}
	return d.addUp(stream, dtype, b, blocks, args.common.scale)
}

// DPOLoss is [pcrm.DPOLoss] on the device. Chosen and Rejected of the batch are the log
// probabilities of the policy. The implicit rewards have Rows elements each, of the type of the
// loss.
//
// Errors: as in [Device.RewardLoss].
func (d *Device) DPOLoss(stream uintptr, dtype Dtype, b Batch, referenceChosen, referenceRejected Strided,
	chosenRewards, rejectedRewards uintptr, beta float64) error {
	if err := b.validate(dtype); err != nil {
		return err
	}
	if !(beta > 0) || math.IsInf(beta, 1) {
		return argErr("beta", "must be greater than 0 and finite, got %v", beta)
	}
	if referenceChosen.Address == 0 || referenceRejected.Address == 0 || chosenRewards == 0 || rejectedRewards == 0 {
		return argErr("reference_chosen_logps, reference_rejected_logps, chosenRewards and rejectedRewards", "must have an address other than 0")
	}
	args := C.pcrm_dpo_args{
		common:           b.common(),
		reference_chosen: address(referenceChosen.Address), reference_chosen_stride: C.pcrm_int(referenceChosen.Stride),
		reference_rejected: address(referenceRejected.Address), reference_rejected_stride: C.pcrm_int(referenceRejected.Stride),
		chosen_rewards: address(chosenRewards), rejected_rewards: address(rejectedRewards),
		beta: C.double(beta),
	}
	blocks, threads := rowBlocks(b.Rows)
	if err := d.launch(C.PCRM_KERNEL_dpo_float32+int(dtype), blocks, threads, stream, unsafe.Pointer(&args)); err != nil {
		return err
	}
	return d.addUp(stream, dtype, b, blocks, args.common.scale)
}

// scaleBlocks is enough for 16 million elements at a time; threads loop over further elements.
const scaleBlocks = 1 << 16

// Scale is the backward pass. It multiplies both gradients by the incoming gradient, which is
// also on the device:
//
//	for i := range count {
//		chosen[i] = gradChosen[i] * incoming[i/width]
//		rejected[i] = gradRejected[i] * incoming[i/width]
//	}
//
// chosen and rejected have the Dtype; the others have its computing type (see [Batch]). If the
// two types are the same, the destinations may be the gradients themselves. A stride of 0 in
// incoming means a scalar.
//
// Errors: as in [Device.RewardLoss].
func (d *Device) Scale(stream uintptr, dtype Dtype, count, width int64, chosen, rejected, gradChosen, gradRejected uintptr, incoming Strided) error {
	switch {
	case dtype < Float32 || dtype > Float16:
		return argErr("dtype", "must be Float32, Float64, BFloat16 or Float16, got %d", int(dtype))
	case count < 1 || width < 1:
		return argErr("count and width", "must be at least 1, got %d and %d", count, width)
	case chosen == 0 || rejected == 0 || gradChosen == 0 || gradRejected == 0 || incoming.Address == 0:
		return argErr("every gradient", "must have an address other than 0")
	}
	args := C.pcrm_scale_args{
		count: C.pcrm_int(count), width: C.pcrm_int(width),
		chosen: address(chosen), rejected: address(rejected),
		grad_chosen: address(gradChosen), grad_rejected: address(gradRejected),
		incoming: address(incoming.Address), incoming_stride: C.pcrm_int(incoming.Stride),
	}
	blocks := min((count+rowThreads-1)/rowThreads, scaleBlocks)
	return d.launch(C.PCRM_KERNEL_scale_float32+int(dtype), blocks, rowThreads, stream, unsafe.Pointer(&args))
}

//go:build !(cgo && linux)

package gpu

// Without cgo the driver cannot be called. See device.go for the documentation.

type Device struct{}

var errNoCgo = &Unavailable{"this program was built without cgo, or not for Linux"}

func Open(index int) (*Device, error) { return nil, errNoCgo }

func Probe() (Info, error) { return Info{}, errNoCgo }

func (d *Device) RewardLoss(stream uintptr, dtype Dtype, b Batch, center float64) error {
	return errNoCgo
}

func (d *Device) TokenLoss(stream uintptr, dtype Dtype, b Batch, t Tokens) error { return errNoCgo }

func (d *Device) DPOLoss(stream uintptr, dtype Dtype, b Batch, referenceChosen, referenceRejected Strided,
	chosenRewards, rejectedRewards uintptr, beta float64) error {
	return errNoCgo
}

func (d *Device) Scale(stream uintptr, dtype Dtype, count, width int64, chosen, rejected, gradChosen, gradRejected uintptr, incoming Strided) error {
	return errNoCgo
}

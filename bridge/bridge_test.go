package bridge

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pcrm-project/pcrm/pcrm"
)

// kept makes the arrays of the tests escape to the heap, where they do not move. The bridge is designed
// for memory that Go does not own.
var kept []any

func address[T any](s []T) uintptr {
	kept = append(kept, s)
	return uintptr(unsafe.Pointer(unsafe.SliceData(s)))
}

func TestRewardLoss(t *testing.T) {
	chosen, rejected, delta := []float32{1, 2}, []float32{0, 3}, []float32{4, 5}
	loss, gradChosen, gradRejected := make([]float32, 1), make([]float32, 2), make([]float32, 2)
	ok, err := RewardLoss(4, 2, address(loss), address(gradChosen), address(gradRejected),
		address(chosen), address(rejected), address(delta), 0, 0, 0, false)
	require.NoError(t, err)
	assert.True(t, ok)
	assert.NotZero(t, loss[0])
	assert.Equal(t, gradChosen[1], -gradRejected[1])

	losses := make([]float32, 2)
	_, err = RewardLoss(4, 2, address(losses), 0, 0, address(chosen), address(rejected), address(delta), 0, 0, 2, false)
	require.NoError(t, err)
	assert.InDelta(t, loss[0], (losses[0]+losses[1])/2, 1e-6)
}

func TestWinProbabilities(t *testing.T) {
	margins, deltas, dst := []float32{0, 1}, []float32{4, 4}, make([]float32, 2)
	_, err := WinProbabilities(4, 2, address(dst), address(margins), address(deltas))
	require.NoError(t, err)
	assert.InDeltaSlice(t, []float32{0.5, 0.76581041}, dst, 1e-7)
	margin, delta, p := []float64{-1}, []float64{4}, make([]float64, 1)
	_, err = WinProbabilities(8, 1, address(p), address(margin), address(delta))
	require.NoError(t, err)
	assert.InDelta(t, 0.23418959, p[0], 1e-8)
	_, err = WinProbabilities(8, 1, address(p), address(margin), address([]float64{0}))
	assert.EqualError(t, err, "ValueError: delta[0] must be greater than 0, got 0")
	_, err = WinProbabilities(2, 1, 0, 0, 0)
	assert.ErrorContains(t, err, "TypeError: dtype code must be 4 (float32) or 8 (float64), got 2")
}

// Each kind of error has the prefix of its Python exception, and panics do not leave the bridge.
func TestErrors(t *testing.T) {
	_, err := RewardLoss(3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, false)
	assert.EqualError(t, err, "TypeError: dtype code must be 4 (float32) or 8 (float64), got 3")
	delta := []float64{-1}
	_, err = RewardLoss(8, 1, address(delta), 0, 0, address(delta), address(delta), address(delta), 0, 0, 0, false)
	assert.EqualError(t, err, "ValueError: delta[0] must be greater than 0, got -1")
	one := []float64{1}
	ok, err := RewardLoss(8, 1, 0, 0, 0, address(one), address(one), address(one), 0, 0, 0, false) // no memory for the loss
	assert.False(t, ok)
	assert.ErrorContains(t, err, "RuntimeError: pcrm: internal error, please report it: runtime error: index out of range")
	err = fmt.Errorf("pcrm.toml:3: %w", &pcrm.ArgumentError{Argument: "delta", Index: -1, Reason: "is 0"})
	convert(&err)
	assert.EqualError(t, err, "ValueError: pcrm.toml:3: delta is 0", "what is around an ArgumentError stays")
	_, err = Deltas(2, 1, 0, 0, address(make([]float64, 7)))
	assert.ErrorContains(t, err, "TypeError: dtype code must be 4 (float32) or 8 (float64), got 2")
	_, err = Fit(1, address(one), address(one), 0, 3, 0, 1)
	assert.ErrorContains(t, err, "ValueError: target_alike must be greater than 0, got 0")
	_, err = LengthRatios(1, 0, 0, 0, 0, 0, 0, 0, -1)
	assert.ErrorContains(t, err, "ValueError: chosen_ids must have 1 offsets for 0 rows, got 0")
}

// A report is JSON with finite numbers. Failures are distinguished from invalid folders.
func TestVerifyTrace(t *testing.T) {
	const sample = "../pcrm/trace/testdata/trace"
	type report struct {
		OK                   bool
		Files, Pairs, Failed int
		Rows                 []map[string]any
		Failures             []string
		Text                 string
	}
	verify := func(dir string) (r report) {
		text, err := VerifyTrace(dir)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal([]byte(text), &r))
		return r
	}
	good := verify(sample)
	assert.True(t, good.OK)
	assert.Equal(t, 3, good.Files)
	assert.Equal(t, 27, good.Pairs)
	assert.NotNil(t, good.Failures, "a list and not null")
	assert.Contains(t, good.Text, "3 files, 27 pairs: ok")
	require.Len(t, good.Rows, 3)
	assert.Equal(t, "dpo float32 go", fmt.Sprint(good.Rows[0]["form"], " ", good.Rows[0]["dtype"], " ", good.Rows[0]["backend"]))
	assert.Equal(t, 2e-6, good.Rows[0]["loss_tolerance"])
	assert.LessOrEqual(t, good.Rows[0]["gradient_error"], 2e-6)

	// The last tensor, in the order of the names, is rejected_rewards of the first form.
	const name = "rank00000-run0123456789ab-step00000001.safetensors"
	data, err := os.ReadFile(filepath.Join(sample, name))
	require.NoError(t, err)
	data = bytes.Clone(data)
	copy(data[len(data)-4:], []byte{0, 0, 0x80, 0x7f}) // +Inf
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	bad := verify(dir)
	assert.False(t, bad.OK)
	assert.Equal(t, len(bad.Failures), bad.Failed)
	assert.Contains(t, bad.Failures[0], name+": grad_chosen[8]: got ")
	assert.Nil(t, bad.Rows[0]["loss_error"], "infinite")

	_, err = VerifyTrace(filepath.Join(dir, "none"))
	assert.ErrorContains(t, err, "OSError: open ")
	_, err = VerifyTrace(t.TempDir())
	assert.ErrorContains(t, err, "ValueError: trace folder ")
}

// With or without CUDA on this machine, each function returns an error with its prefix.
func TestCUDAErrors(t *testing.T) {
	_, opened := CUDAOpen(-1)
	_, reward := CUDARewardLoss(-1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0)
	_, token := CUDATokenLoss(-1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0, 1, 1, 0, 8, 1, 1, 0, 8, 1, 1, 0, 0, 0)
	_, dpo := CUDADPOLoss(-1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 1, 0, 1, 0, 0.1, 0, 0)
	_, scale := CUDAScale(-1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0)
	for _, err := range []error{opened, reward, token, dpo, scale} {
		assert.Regexp(t, "^(RuntimeError: .*(CUDA|cgo)|ValueError: device must be .*, got -1$)", err)
	}
}

package bridge

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestAverages(t *testing.T) {
	const header = `{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`
	file := append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...)
	in := t.TempDir()
	path := filepath.Join(in, "model.safetensors")
	list, err := json.Marshal([]string{in, in})
	require.NoError(t, err)

	_, err = AverageNew(string(list), 0, -1)
	assert.ErrorContains(t, err, "ValueError: "+in+": must contain model.safetensors or")
	require.NoError(t, os.WriteFile(path, file, 0o600))
	_, err = AverageNew(string(list), 0, -1)
	assert.ErrorContains(t, err, "ValueError: "+path+`: tensor "a": data_offsets must end within the 0 bytes of data, got 8`)
	_, err = AverageNew(`["/nowhere","/nowhere"]`, 0, -1)
	assert.ErrorContains(t, err, "OSError: stat /nowhere")

	file = binary.LittleEndian.AppendUint32(file, math.Float32bits(1))
	file = binary.LittleEndian.AppendUint32(file, math.Float32bits(float32(math.Inf(1))))
	require.NoError(t, os.WriteFile(path, file, 0o600))
	_, err = AverageNew(string(list), address([]float64{-1, 2}), 2)
	assert.EqualError(t, err, "ValueError: weights[0] must be at least 0 and finite, got -1")
	_, err = AverageNew(string(list), 0, 0)
	assert.EqualError(t, err, "ValueError: weights must have 2 elements, one per checkpoint, got 0")
	text, err := AverageNew(string(list), address([]float64{1, 3}), 2)
	require.NoError(t, err)
	var info struct {
		Handle, Bytes int64
		Tensors       int
		Weights       []float64
		Files         []string
	}
	require.NoError(t, json.Unmarshal([]byte(text), &info))
	assert.Equal(t, []float64{0.25, 0.75}, info.Weights)
	assert.Equal(t, []string{"model.safetensors"}, info.Files)
	assert.Equal(t, int64(8), info.Bytes)
	assert.Equal(t, 1, info.Tensors)

	_, err = AverageCreate(info.Handle, in)
	assert.ErrorContains(t, err, "OSError: open "+path+": file exists")
	out := t.TempDir()
	_, err = AverageCreate(info.Handle, out)
	require.NoError(t, err)
	for _, want := range []int64{8, 0} {
		n, err := AverageNext(info.Handle)
		require.NoError(t, err)
		assert.Equal(t, want, n)
	}
	text, err = AverageClose(info.Handle)
	require.NoError(t, err)
	assert.JSONEq(t, `{"not_finite": 1, "first": "a"}`, text)
	got, err := os.ReadFile(filepath.Join(out, "model.safetensors"))
	require.NoError(t, err)
	assert.Equal(t, file, got)
	_, err = AverageNext(info.Handle)
	assert.ErrorContains(t, err, "RuntimeError: average 1 must be open")
}

func TestDividedTensors(t *testing.T) {
	const header = `{"a":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}`
	file := append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...)
	in := t.TempDir()
	path := filepath.Join(in, "model.safetensors")
	require.NoError(t, os.WriteFile(path, binary.LittleEndian.AppendUint32(file, math.Float32bits(3)), 0o600))

	text, err := CheckpointTensors(in, "model.safetensors")
	require.NoError(t, err)
	assert.JSONEq(t, `[{"file":"model.safetensors","name":"a","dtype":"F32","shape":[1,1]}]`, text)
	_, err = CheckpointTensors(in, "x.safetensors")
	assert.ErrorContains(t, err, "ValueError: "+in+": must contain x.safetensors or")
	_, err = CheckpointTensors("/nowhere", "x.safetensors")
	assert.ErrorContains(t, err, "OSError: stat /nowhere")

	_, err = DivideTensors(path, `["a"]`, 0)
	assert.EqualError(t, err, "ValueError: divisor must be greater than 0, got 0")
	_, err = DivideTensors(path, `["b"]`, 2)
	assert.EqualError(t, err, "ValueError: "+path+`: tensor "b": is missing`)
	_, err = DivideTensors(path, `["a"]`, 2)
	require.NoError(t, err)
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, binary.LittleEndian.AppendUint32(file, math.Float32bits(1.5)), got)
}

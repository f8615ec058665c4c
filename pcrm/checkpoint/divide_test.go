package checkpoint

import (
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pcrm-project/pcrm/pcrm"
)

func TestTensors(t *testing.T) {
	a, b := tensors{{"a", "F32", float32s(1, 2)}}, tensors{{"b", "U8", []byte{1}}, {"c", "F16", nil}}
	want := []Tensor{{"x.safetensors", "a", "F32", []int{2}}, {"y.safetensors", "c", "F16", []int{0}}, {"y.safetensors", "b", "U8", []int{1}}}
	names := map[string]string{"a": "x.safetensors", "b": "y.safetensors", "c": "y.safetensors"}
	for _, name := range []string{Single, "adapter_model.safetensors"} {
		dir := folder(t, map[string][]byte{name + ".index.json": index(names), "x.safetensors": a.file(), "y.safetensors": b.file()})
		list, err := Tensors(dir, name)
		require.NoError(t, err)
		assert.ElementsMatch(t, want, list)
		// transformers prefers the single file if there is one.
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), a.file(), 0o600))
		list, err = Tensors(dir, name)
		require.NoError(t, err)
		assert.Equal(t, []Tensor{{name, "a", "F32", []int{2}}}, list)

		_, err = Tensors(folder(t, nil), name)
		assert.ErrorContains(t, err, ": must contain "+name+" or "+name+".index.json")
	}
}

// Every quotient is rounded as its type defines, and all other bytes stay the same.
func TestDivide(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, f := range formats {
		for _, divisor := range []float64{1, 3, 0.7, 2} {
			x, want := make([]float64, 99), make([]float64, 99)
			for i := range x {
				x[i] = f.nearest(random.NormFloat64())
				want[i] = f.nearest(x[i] / divisor)
			}
			head, other := f.encode(x...), f.encode(x[:50]...)
			list := tensors{{"a", f.dtype, other}, {"score.weight", f.dtype, head}, {"z", "I32", make([]byte, 8)}, {"score.bias", f.dtype, head[:f.bits/8]}}
			path := filepath.Join(folder(t, single(list)), Single)
			require.NoError(t, Divide(path, []string{"score.weight", "score.bias"}, divisor))
			got, err := os.ReadFile(path)
			require.NoError(t, err)
			list[1].data, list[3].data = f.encode(want...), f.encode(want[0])
			assert.Equal(t, list.file(), got, "%s, divisor %v", f.dtype, divisor)
		}
	}
}

func TestDivideRefuses(t *testing.T) {
	list := tensors{{"a", "F16", formats[3].encode(1, 60000)}, {"nan", "F32", float32s(math.NaN())}, {"i", "I32", make([]byte, 4)}}
	dir := folder(t, single(list))
	path := filepath.Join(dir, Single)
	for _, c := range []struct {
		names   []string
		divisor float64
		want    string
	}{
		{[]string{"a", "b"}, 2, path + `: tensor "b": is missing`},
		{[]string{"a", "i"}, 2, path + `: tensor "i": must be F64, F32, F16 or BF16, got I32`},
		{[]string{"a", "nan"}, 2, path + `: tensor "nan": element 0 divided by 2 must be finite in F32, got NaN`},
		{[]string{"a"}, 0.5, path + `: tensor "a": element 1 divided by 0.5 must be finite in F16, got +Inf`},
	} {
		var refused *Error
		err := Divide(path, c.names, c.divisor)
		assert.ErrorAs(t, err, &refused)
		assert.EqualError(t, err, c.want)
	}
	for _, divisor := range []float64{0, -1, math.NaN(), math.Inf(1)} {
		var argument *pcrm.ArgumentError
		assert.ErrorAs(t, Divide(path, []string{"a"}, divisor), &argument)
	}
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, list.file(), got)

	require.NoError(t, os.Truncate(path, 30))
	assert.ErrorContains(t, Divide(path, []string{"a"}, 2), "is the file truncated?")
	assert.ErrorIs(t, Divide(dir+"/none", nil, 2), os.ErrNotExist)
	pipe := filepath.Join(dir, "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	assert.ErrorContains(t, Divide(pipe, nil, 2), "must be a regular file")
}

package checkpoint

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pcrm-project/pcrm/pcrm"
	"github.com/pcrm-project/pcrm/pcrm/internal/safetensors"
)

// tensors holds the tensors of a file in order.
type tensors []struct {
	name, dtype string
	data        []byte
}

// file returns a safetensors file of flat tensors.
func (list tensors) file() []byte {
	var header, data []byte
	for _, x := range list {
		begin := len(data)
		data = append(data, x.data...)
		header = fmt.Appendf(header, `,%q:{"dtype":%q,"shape":[%d],"data_offsets":[%d,%d]}`,
			x.name, x.dtype, len(x.data)/safetensors.Size(x.dtype), begin, len(data))
	}
	header = append([]byte("{"), append(header[min(1, len(header)):], '}')...)
	return append(append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...), data...)
}

func float32s(x ...float64) []byte { return formats[1].encode(x...) }

// folder creates a folder with the given files.
func folder(t testing.TB, files map[string][]byte) string {
	dir := t.TempDir()
	for name, data := range files {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}
	return dir
}

func index(files map[string]string) []byte {
	data, _ := json.Marshal(map[string]any{"metadata": map[string]any{"total_size": 1}, "weight_map": files})
	return data
}

func single(list tensors) map[string][]byte { return map[string][]byte{Single: list.file()} }

// run averages checkpoints into a folder and returns its files.
func run(t *testing.T, weights []float64, folders ...string) (*Average, map[string][]byte) {
	a, err := New(folders, weights)
	require.NoError(t, err)
	defer a.Close()
	out, total := t.TempDir(), int64(0)
	require.NoError(t, a.Create(out))
	for n := int64(-1); n != 0; total += n {
		n, err = a.Next()
		require.NoError(t, err)
	}
	assert.Equal(t, a.Bytes+1, total+1)
	files := map[string][]byte{}
	for _, name := range a.Files() {
		files[name], err = os.ReadFile(filepath.Join(out, name))
		require.NoError(t, err)
	}
	names, err := os.ReadDir(out)
	require.NoError(t, err)
	assert.Len(t, names, len(files))
	return a, files
}

// The average is split into files like the first checkpoint, however the others are split.
// Integers are copied. Numbers that are not finite are counted.
func TestAverage(t *testing.T) {
	many := make([]float64, 3*pieceElements+7)
	for i := range many {
		many[i] = float64(i % 1000)
	}
	half := make([]float64, len(many))
	for i, x := range many {
		half[i] = x / 2
	}
	ints := []byte{1, 0, 0, 0, 0, 0, 0, 0}
	one := folder(t, single(tensors{{"b", "F32", float32s(1, 2)}, {"a", "F32", float32s(many...)}, {"i", "I64", ints}, {"empty", "F32", nil}}))
	second := map[string][]byte{
		"x.safetensors": tensors{{"i", "I64", ints}, {"b", "F32", float32s(3, math.Inf(1))}}.file(),
		"y.safetensors": tensors{{"empty", "F32", nil}, {"a", "F32", float32s(make([]float64, len(many))...)}}.file(),
		Index:           index(map[string]string{"i": "x.safetensors", "b": "x.safetensors", "a": "y.safetensors", "empty": "y.safetensors"}),
	}
	two := folder(t, second)

	a, files := run(t, nil, one, two)
	assert.Equal(t, []float64{0.5, 0.5}, a.Weights)
	assert.Equal(t, 4, a.Tensors)
	assert.Equal(t, int64(1), a.NotFinite)
	assert.Equal(t, "b", a.First)
	assert.Equal(t, map[string][]byte{Single: tensors{{"b", "F32", float32s(2, math.Inf(1))}, {"a", "F32", float32s(half...)}, {"i", "I64", ints}, {"empty", "F32", nil}}.file()}, files)

	a, files = run(t, []float64{0, 1}, two, one)
	assert.Equal(t, int64(1), a.NotFinite) // 0 times infinity
	assert.Equal(t, second[Index], files[Index])
	assert.Equal(t, tensors{{"empty", "F32", nil}, {"a", "F32", float32s(many...)}}.file(), files["y.safetensors"])

	a, files = run(t, []float64{1e300, 3e300}, one, one) // the sum of the products overflows, but not that of the weights
	assert.Equal(t, []float64{0.25, 0.75}, a.Weights)
	data, err := os.ReadFile(filepath.Join(one, Single))
	require.NoError(t, err)
	assert.Equal(t, data, files[Single])
	assert.Zero(t, a.NotFinite)
}

func TestRefusals(t *testing.T) {
	good := tensors{{"a", "F32", float32s(1, 2, 3)}, {"i", "I32", []byte{1, 0, 0, 0, 2, 0, 0, 0}}}
	first := folder(t, single(good))
	file := good.file()
	shards := func(change func(files map[string][]byte, names map[string]string)) map[string][]byte {
		files := map[string][]byte{"1.safetensors": good[:1].file(), "2.safetensors": good[1:].file()}
		names := map[string]string{"a": "1.safetensors", "i": "2.safetensors"}
		change(files, names)
		if files[Index] == nil {
			files[Index] = index(names)
		}
		return files
	}
	for _, c := range []struct {
		files map[string][]byte
		want  string // the message after the folder; FIRST stands for the first folder
	}{
		{nil, ": must contain model.safetensors or model.safetensors.index.json: other kinds"},
		{map[string][]byte{Single: file[:len(file)-1]}, `/model.safetensors: tensor "i": data_offsets must end within the 19 bytes of data, got 20: is the file truncated?`},
		{map[string][]byte{Single: file[:5]}, "/model.safetensors: must have at least 8 bytes, the header's length, got 5"},
		{map[string][]byte{Single: slices.Repeat([]byte{0xff}, 64)}, "/model.safetensors: header must have at most 104857600 bytes, got 18446744073709551615"},
		{single(nil), "/model.safetensors: must have at least one tensor"},
		{single(good[:1]), `: tensor "i": is missing, but FIRST/model.safetensors has it`},
		{single(append(slices.Clone(good), tensors{{"more", "F32", nil}}...)), `/model.safetensors: tensor "more": is missing from FIRST`},
		{single(tensors{{"a", "F32", float32s(1, 2)}, good[1]}), `/model.safetensors: tensor "a": must have shape [3], as in FIRST/model.safetensors, got [2]`},
		{single(tensors{{"a", "F16", make([]byte, 6)}, good[1]}), `/model.safetensors: tensor "a": must be F32, as in FIRST/model.safetensors, got F16`},
		{single(tensors{good[0], {"i", "I32", []byte{1, 0, 0, 0, 2, 0, 0, 1}}}), `/model.safetensors: tensor "i": element 1 must equal that of FIRST/model.safetensors: tensors of I32 are not averaged`},
		{shards(func(files map[string][]byte, names map[string]string) { names["a"] = "../1.safetensors" }),
			`/model.safetensors.index.json: tensor "a": must be in a .safetensors file in the folder of the index, got "../1.safetensors"`},
		{shards(func(files map[string][]byte, names map[string]string) { names["more"] = "2.safetensors" }),
			`/2.safetensors: tensor "more": is missing, but listed in model.safetensors.index.json`},
		{shards(func(files map[string][]byte, names map[string]string) { names["i"] = "1.safetensors" }),
			`/1.safetensors: tensor "i": is missing, but listed in model.safetensors.index.json`},
		{shards(func(files map[string][]byte, names map[string]string) { files["2.safetensors"] = good.file() }),
			`/2.safetensors: tensor "a": is also in FOLDER/1.safetensors`},
		{shards(func(files map[string][]byte, names map[string]string) {
			delete(names, "i")
			files["1.safetensors"] = file
		}), `/1.safetensors: tensor "i": is in this file, but model.safetensors.index.json names another`},
		{shards(func(files map[string][]byte, names map[string]string) {
			names["a"] = "2.safetensors"
			files["2.safetensors"] = good.file()
		}),
			``},
		{shards(func(files map[string][]byte, names map[string]string) {
			files["1.safetensors"] = files["1.safetensors"][:20]
		}),
			`/1.safetensors: header must have`},
		{shards(func(files map[string][]byte, names map[string]string) { files[Index] = []byte("[]") }),
			`/model.safetensors.index.json: must be a JSON object`},
	} {
		second := folder(t, c.files)
		a, err := New([]string{first, second}, nil)
		if c.want == "" {
			require.NoError(t, err) // there is no model.safetensors, and the index lists one of two files
			a.Close()
			continue
		}
		assert.Nil(t, a)
		var refused *Error
		require.ErrorAs(t, err, &refused)
		want := strings.NewReplacer("FIRST", first, "FOLDER", second).Replace(second + c.want)
		assert.True(t, strings.HasPrefix(err.Error(), want), "%s\n%s", err, want)
	}

	missing := folder(t, map[string][]byte{Index: index(map[string]string{"a": "1.safetensors"})})
	_, err := New([]string{first, missing}, nil)
	assert.ErrorIs(t, err, os.ErrNotExist)
	_, err = New([]string{first, filepath.Join(first, "x")}, nil)
	assert.ErrorIs(t, err, os.ErrNotExist)
	_, err = New([]string{first, filepath.Join(first, Single)}, nil)
	assert.ErrorContains(t, err, Single+": must be the folder of a checkpoint, got a file")
	pipe := folder(t, nil)
	require.NoError(t, syscall.Mkfifo(filepath.Join(pipe, Single), 0o600))
	_, err = New([]string{first, pipe}, nil)
	assert.EqualError(t, err, "open "+filepath.Join(pipe, Single)+": must be a regular file")

	for _, c := range []struct {
		folders []string
		weights []float64
		want    string
	}{
		{[]string{first}, nil, "checkpoints must have at least 2 elements, got 1"},
		{[]string{first, first}, []float64{1}, "weights must have 2 elements, one per checkpoint, got 1"},
		{[]string{first, first}, []float64{}, "weights must have 2 elements, one per checkpoint, got 0"},
		{[]string{first, first}, []float64{1, -1}, "weights[1] must be at least 0 and finite, got -1"},
		{[]string{first, first}, []float64{math.NaN(), 1}, "weights[0] must be at least 0 and finite, got NaN"},
		{[]string{first, first}, []float64{1, math.Inf(1)}, "weights[1] must be at least 0 and finite, got +Inf"},
		{[]string{first, first}, []float64{0, 0}, "weights must have a finite sum greater than 0, got 0"},
		{[]string{first, first}, []float64{1e308, 1e308}, "weights must have a finite sum greater than 0, got +Inf"},
	} {
		_, err := New(c.folders, c.weights)
		var argument *pcrm.ArgumentError
		assert.ErrorAs(t, err, &argument)
		assert.EqualError(t, err, c.want)
	}
}

// A file becomes shorter after it was checked.
func TestCutOff(t *testing.T) {
	list := tensors{{"a", "F32", float32s(make([]float64, 100)...)}}
	first, second := folder(t, single(list)), folder(t, single(list))
	a, err := New([]string{first, second}, nil)
	require.NoError(t, err)
	defer a.Close()
	require.NoError(t, a.Create(t.TempDir()))
	require.NoError(t, os.Truncate(filepath.Join(second, Single), 100))
	_, err = a.Next()
	assert.EqualError(t, err, filepath.Join(second, Single)+`: tensor "a": the file was truncated while it was read`)
}

func TestCreate(t *testing.T) {
	list := tensors{{"a", "F32", float32s(1)}}
	first := folder(t, single(list))
	a, err := New([]string{first, first}, nil)
	require.NoError(t, err)
	defer a.Close()
	assert.ErrorIs(t, a.Create(first), os.ErrExist)
	data, err := os.ReadFile(filepath.Join(first, Single))
	require.NoError(t, err)
	assert.Equal(t, list.file(), data)
}

// A checkpoint with any content is rejected, or averaged in accordance with its header.
func FuzzNew(f *testing.F) {
	good := tensors{{"a", "BF16", []byte("12345678")}, {"i", "U8", []byte{1, 2}}}
	f.Add(good.file(), []byte(nil))
	f.Add(good[:1].file(), index(map[string]string{"a": Single, "i": "2.safetensors"}))
	f.Add(good.file()[:30], index(map[string]string{"a": "/etc/passwd"}))
	f.Fuzz(func(t *testing.T, data, names []byte) {
		first := folder(t, single(good))
		files := map[string][]byte{Single: data}
		if len(names) > 0 {
			files = map[string][]byte{Index: names, "1.safetensors": data, "2.safetensors": good[1:].file()}
		}
		second := folder(t, files)
		a, err := New([]string{second, first}, []float64{1, 2})
		if err != nil {
			_, refused := errors.AsType[*Error](err)
			if _, missing := errors.AsType[*os.PathError](err); !refused && !missing {
				t.Fatal(err)
			}
			return
		}
		defer a.Close()
		out := t.TempDir()
		require.NoError(t, a.Create(out))
		n, err := a.Next()
		require.NoError(t, err)
		assert.Equal(t, int64(10), n)
		n, err = a.Next()
		require.NoError(t, err)
		assert.Zero(t, n)
		b, err := New([]string{out, first}, nil)
		require.NoError(t, err, "what was written can be averaged")
		b.Close()
	})
}

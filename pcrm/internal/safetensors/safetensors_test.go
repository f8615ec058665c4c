package safetensors

import (
	"bytes"
	"encoding/binary"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// file returns a file with a header followed by data.
func file(header, data string) []byte {
	return append(append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...), data...)
}

func TestParse(t *testing.T) {
	f, err := Parse(file(`{"b":{"dtype":"F32","shape":[1,2],"data_offsets":[2,10]},"__metadata__":{"form":"pair","é":""},`+
		`"a":{"data_offsets":[0,2],"dtype":"BF16","shape":[]},"empty":{"dtype":"I64","shape":[0,3],"data_offsets":[2,2]}}   `, "abcdefghij"))
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"form": "pair", "é": ""}, f.Metadata)
	assert.Equal(t, map[string]Tensor{
		"a":     {"BF16", []int{}, []byte("ab")},
		"b":     {"F32", []int{1, 2}, []byte("cdefghij")},
		"empty": {"I64", []int{0, 3}, []byte{}},
	}, f.Tensors)
	assert.Equal(t, 1, f.Tensors["a"].Len())
	assert.Equal(t, 2, f.Tensors["b"].Len())

	f, err = Parse(file("{}", ""))
	require.NoError(t, err)
	assert.Empty(t, f.Tensors)
}

func TestHostile(t *testing.T) {
	one := func(entry string) []byte { return file(`{"a":{`+entry+`}}`, "12345678") }
	long := file("{}", "")
	binary.LittleEndian.PutUint64(long, math.MaxUint64)
	over := file("{}", "")
	binary.LittleEndian.PutUint64(over, 11)
	good := one(`"dtype":"F32","shape":[2],"data_offsets":[0,8]`)
	for _, c := range []struct {
		data []byte
		want string
	}{
		{nil, "must have at least 8 bytes, the header's length, got 0"},
		{long, "header must have at most 104857600 bytes, got 18446744073709551615"},
		{over, "header must have 11 bytes, got 2: is the file truncated?"},
		{good[:20], "is the file truncated?"},
		{good[:len(good)-1], `tensor "a": data_offsets must end within the 7 bytes of data, got 8: is the file truncated?`},
		{append(good, 0), "tensors must end at byte 9, where the data ends, got 8"},
		{file("", ""), "header must be a JSON object"},
		{file("[]", ""), "header must be a JSON object"},
		{file(" {}", ""), "header must be a JSON object"},
		{file("{}{}", ""), "header must be a JSON object"},
		{file("{\"a\xff\":1}", ""), "header must be a JSON object"},
		{file(strings.Repeat("[", 20000), ""), "header must be a JSON object"},
		{file(`{"a":1}`, ""), `header: "a": must begin with {, got 1`},
		{file(`{"a":`+strings.Repeat("[", 5000)+strings.Repeat("]", 5000)+`}`, ""), `header: "a": must begin with {, got [`},
		{file(`{"__metadata__":{"a":1}}`, ""), `header: "__metadata__": "a": must be a string, got 1`},
		{file(`{"__metadata__":null}`, ""), `header: "__metadata__": must begin with {, got <nil>`},
		{file(`{"__metadata__":{"a":"","a":""}}`, ""), `header: "__metadata__": "a" must not be repeated`},
		{file(`{"__metadata__":{},"__metadata__":{}}`, ""), `header: "__metadata__" must not be repeated`},
		{file(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"\u0061":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}`, "12345678"), `header: "a" must not be repeated`},
		{one(`"dtype":"F32","dtype":"F32","data_offsets":[0,8]`), `header: "a": "dtype" must not be repeated`},
		{one(`"dtype":"F32","shape":[2]`), `header: "a": must have dtype, shape and data_offsets`},
		{one(`"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1`), `header: "a": "x": is an unknown key`},
		{one(`"dtype":"F8","shape":[2],"data_offsets":[0,8]`), `header: "a": dtype must be one of BF16, BOOL, F16, F32, F64, I16, I32, I64, I8, U16, U32, U64, U8, got "F8"`},
		{one(`"dtype":4,"shape":[2],"data_offsets":[0,8]`), `header: "a": "dtype": must be a string, got 4`},
		{one(`"dtype":"F32","shape":null,"data_offsets":[0,8]`), `header: "a": "shape": must begin with [, got <nil>`},
		{one(`"dtype":"F32","shape":[null],"data_offsets":[0,8]`), `header: "a": "shape": [0] must be a number, got <nil>`},
		{one(`"dtype":"F32","shape":[2,"1"],"data_offsets":[0,8]`), `header: "a": "shape": [1] must be a number, got 1`},
		{one(`"dtype":"F32","shape":[2e0],"data_offsets":[0,8]`), `header: "a": "shape": [0] must be a size, got 2e0`},
		{one(`"dtype":"F32","shape":[-2],"data_offsets":[0,8]`), `header: "a": "shape": [0] must be a size, got -2`},
		{one(`"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,8]`), `must be a size`},
		{one(`"dtype":"F32","shape":[4611686018427387906],"data_offsets":[0,8]`), `shape must have fewer than 2^64 bytes`},
		{one(`"dtype":"F32","shape":[2],"data_offsets":[0,8,8]`), `header: "a": data_offsets must be a begin and an end, got [0 8 8]`},
		{one(`"dtype":"F32","shape":[2],"data_offsets":[8,0]`), `header: "a": data_offsets must be a begin and an end, got [8 0]`},
		{one(`"dtype":"F32","shape":[3],"data_offsets":[0,8]`), `header: "a": data_offsets must span 12 bytes for shape [3] of F32, got [0 8]`},
		{one(`"dtype":"F32","shape":[1],"data_offsets":[4,8]`), `tensor "a": data_offsets must begin at 0, where the previous tensor ends, got 4`},
		{file(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}`, "12345678"),
			`tensor "b": data_offsets must begin at 4, where the previous tensor ends, got 2`},
	} {
		_, err := Parse(c.data)
		assert.ErrorContains(t, err, c.want, "%.80q", c.data)
	}
	for n := range good {
		_, err := Parse(good[:n])
		assert.Error(t, err, "the first %d bytes", n)
	}
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.safetensors")
	_, err := Read(path)
	assert.ErrorIs(t, err, os.ErrNotExist)
	_, err = Read(dir)
	assert.EqualError(t, err, "open "+dir+": must be a regular file")
	require.NoError(t, os.WriteFile(path, file("{}", ""), 0o600))
	_, err = Read(path)
	require.NoError(t, err)
	// A sparse file can have any size without contents.
	require.NoError(t, os.Truncate(path, maxFile+1))
	_, err = Read(path)
	assert.EqualError(t, err, "must have at most 4294967296 bytes, got 4294967297")
}

func TestReadHeader(t *testing.T) {
	data := file(`{"b":{"dtype":"F32","shape":[1,2],"data_offsets":[2,10]},"a":{"data_offsets":[0,2],"dtype":"U8","shape":[2]}} `, "abcdefghij")
	h, err := ReadHeader(bytes.NewReader(data), int64(len(data)))
	require.NoError(t, err)
	n := int64(len(data) - 10)
	assert.Equal(t, data[:n], h.Raw)
	assert.Equal(t, []Entry{{"a", "U8", []int{2}, n, n + 2}, {"b", "F32", []int{1, 2}, n + 2, n + 10}}, h.Entries)
	// The file has become shorter.
	for _, size := range []int{4, 20} {
		_, err = ReadHeader(bytes.NewReader(data[:size]), int64(len(data)))
		assert.ErrorIs(t, err, io.EOF)
	}
}

func TestParseIndex(t *testing.T) {
	files, err := ParseIndex([]byte(`{"metadata":{"total_size":1.5,"x":[{}]},"weight_map":{"b":"1.safetensors","a":"1.safetensors"}}` + "\n"))
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"a": "1.safetensors", "b": "1.safetensors"}, files)
	for _, c := range []struct{ data, want string }{
		{"", "must be a JSON object"},
		{"[]", "must be a JSON object"},
		{"{\"\xff\":1}", "must be a JSON object"},
		{strings.Repeat(`{"a":`, 20000), "must be a JSON object"},
		{"{}", "must have a non-empty weight_map"},
		{`{"weight_map":{}}`, "must have a non-empty weight_map"},
		{`{"weight_map":[]}`, `"weight_map": must begin with {, got [`},
		{`{"weight_map":{"a":1}}`, `"weight_map": "a": must be a string, got 1`},
		{`{"weight_map":{"a":"1.safetensors","\u0061":"2.safetensors"}}`, `"weight_map": "a" must not be repeated`},
		{`{"weight_map":{"a":"1.safetensors"},"weight_map":{}}`, `"weight_map" must not be repeated`},
		{`{"weight_map":{"a":"b/1.safetensors"}}`, `tensor "a": must be in a .safetensors file in the folder of the index, got "b/1.safetensors"`},
		{`{"weight_map":{"a":"/x.safetensors"}}`, `tensor "a": must be in a .safetensors file in the folder of the index, got "/x.safetensors"`},
		{`{"weight_map":{"a":".."}}`, `tensor "a": must be in a .safetensors file in the folder of the index, got ".."`},
		{`{"weight_map":{"a":""}}`, `tensor "a": must be in a .safetensors file in the folder of the index, got ""`},
		{`{"weight_map":{"a":"pytorch_model.bin"}}`, `tensor "a": must be in a .safetensors file in the folder of the index, got "pytorch_model.bin"`},
	} {
		_, err := ParseIndex([]byte(c.data))
		assert.ErrorContains(t, err, c.want, "%.80q", c.data)
	}
}

// All files that an index lists are in the folder of the index.
func FuzzParseIndex(f *testing.F) {
	f.Add([]byte(`{"metadata":{},"weight_map":{"a":"1.safetensors"}}`))
	f.Add([]byte(`{"weight_map":{"a":"../1.safetensors"},"x":[[]]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		files, err := ParseIndex(data)
		if err == nil && len(files) == 0 {
			t.Error("no files")
		}
		for _, name := range files {
			if filepath.Dir(filepath.Join("/folder", name)) != "/folder" {
				t.Errorf("%q", name)
			}
		}
	})
}

// The parsed tensors fit the data of the file.
func FuzzParse(f *testing.F) {
	f.Add(file(`{"__metadata__":{"a":"b"},"a":{"dtype":"F16","shape":[2,1],"data_offsets":[0,4]}}`, "1234"))
	f.Add(file(`{"a":{"dtype":"I32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F64","shape":[0],"data_offsets":[4,4]}} `, "1234"))
	f.Add(file(`{"a":{"dtype":"F32","shape":[4611686018427387906,0],"data_offsets":[0,0]}}`, ""))
	f.Fuzz(func(t *testing.T, data []byte) {
		parsed, err := Parse(data)
		if err != nil {
			return
		}
		total := 0
		for name, tensor := range parsed.Tensors {
			n := 1
			for _, size := range tensor.Shape {
				n *= size
			}
			if n != tensor.Len() || len(tensor.Data) != n*int(dtypes[tensor.Dtype]) {
				t.Errorf("%q: shape %v, %d bytes of %s", name, tensor.Shape, len(tensor.Data), tensor.Dtype)
			}
			total += len(tensor.Data)
		}
		if header := int(binary.LittleEndian.Uint64(data)); 8+header+total != len(data) {
			t.Errorf("%d bytes of tensors, %d of header, %d of file", total, header, len(data))
		}
	})
}

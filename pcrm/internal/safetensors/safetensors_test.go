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

// file is a header and the data behind it.
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
		{nil, "has 0 bytes, must have at least the 8"},
		{long, "header has 18446744073709551615 bytes, must be at most 104857600"},
		{over, "header has 11 bytes, but only 2 follow its length: is the file truncated?"},
		{good[:20], "is the file truncated?"},
		{good[:len(good)-1], `tensor "a": data_offsets end at 8, but there are 7 bytes of data: is the file truncated?`},
		{append(good, 0), "tensors end at 8, but there are 9 bytes of data"},
		{file("", ""), "header is not a JSON object"},
		{file("[]", ""), "header is not a JSON object"},
		{file(" {}", ""), "header is not a JSON object"},
		{file("{}{}", ""), "header is not a JSON object"},
		{file("{\"a\xff\":1}", ""), "header is not a JSON object"},
		{file(strings.Repeat("[", 20000), ""), "header is not a JSON object"},
		{file(`{"a":1}`, ""), `header: "a": is 1, must be of the kind {`},
		{file(`{"a":`+strings.Repeat("[", 5000)+strings.Repeat("]", 5000)+`}`, ""), `header: "a": is [, must be of the kind {`},
		{file(`{"__metadata__":{"a":1}}`, ""), `header: "__metadata__": "a": is 1, must be a string`},
		{file(`{"__metadata__":null}`, ""), `header: "__metadata__": is <nil>, must be of the kind {`},
		{file(`{"__metadata__":{"a":"","a":""}}`, ""), `header: "__metadata__": "a" is there twice`},
		{file(`{"__metadata__":{},"__metadata__":{}}`, ""), `header: "__metadata__" is there twice`},
		{file(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"\u0061":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}`, "12345678"), `header: "a" is there twice`},
		{one(`"dtype":"F32","dtype":"F32","data_offsets":[0,8]`), `header: "a": "dtype" is there twice`},
		{one(`"dtype":"F32","shape":[2]`), `header: "a": must have dtype, shape and data_offsets`},
		{one(`"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1`), `header: "a": "x": is unknown`},
		{one(`"dtype":"F8","shape":[2],"data_offsets":[0,8]`), `header: "a": dtype is "F8", must be BF16, BOOL, F16, F32, F64, I16, I32, I64, I8, U16, U32, U64, U8`},
		{one(`"dtype":4,"shape":[2],"data_offsets":[0,8]`), `header: "a": "dtype": is 4, must be a string`},
		{one(`"dtype":"F32","shape":null,"data_offsets":[0,8]`), `header: "a": "shape": is <nil>, must be of the kind [`},
		{one(`"dtype":"F32","shape":[null],"data_offsets":[0,8]`), `header: "a": "shape": [0] is <nil>, must be a number`},
		{one(`"dtype":"F32","shape":[2,"1"],"data_offsets":[0,8]`), `header: "a": "shape": [1] is 1, must be a number`},
		{one(`"dtype":"F32","shape":[2e0],"data_offsets":[0,8]`), `header: "a": "shape": [0] is 2e0, must be a size`},
		{one(`"dtype":"F32","shape":[-2],"data_offsets":[0,8]`), `header: "a": "shape": [0] is -2, must be a size`},
		{one(`"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,8]`), `must be a size`},
		{one(`"dtype":"F32","shape":[4611686018427387906],"data_offsets":[0,8]`), `too large`},
		{one(`"dtype":"F32","shape":[2],"data_offsets":[0,8,8]`), `header: "a": data_offsets are [0 8 8], must be a begin and an end`},
		{one(`"dtype":"F32","shape":[2],"data_offsets":[8,0]`), `header: "a": data_offsets are [8 0], must be a begin and an end`},
		{one(`"dtype":"F32","shape":[3],"data_offsets":[0,8]`), `header: "a": shape [3] of F32 is 12 bytes, but data_offsets are [0 8]`},
		{one(`"dtype":"F32","shape":[1],"data_offsets":[4,8]`), `tensor "a": data_offsets begin at 4, must at 0, where the one before ends`},
		{file(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}`, "12345678"),
			`tensor "b": data_offsets begin at 2, must at 4`},
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
	assert.EqualError(t, err, "open "+dir+": is no regular file")
	require.NoError(t, os.WriteFile(path, file("{}", ""), 0o600))
	_, err = Read(path)
	require.NoError(t, err)
	// A sparse file has any size and no contents.
	require.NoError(t, os.Truncate(path, maxFile+1))
	_, err = Read(path)
	assert.EqualError(t, err, "has 4294967297 bytes, must have at most 4294967296")
}

func TestReadHeader(t *testing.T) {
	data := file(`{"b":{"dtype":"F32","shape":[1,2],"data_offsets":[2,10]},"a":{"data_offsets":[0,2],"dtype":"U8","shape":[2]}} `, "abcdefghij")
	h, err := ReadHeader(bytes.NewReader(data), int64(len(data)))
	require.NoError(t, err)
	n := int64(len(data) - 10)
	assert.Equal(t, data[:n], h.Raw)
	assert.Equal(t, []Entry{{"a", "U8", []int{2}, n, n + 2}, {"b", "F32", []int{1, 2}, n + 2, n + 10}}, h.Entries)
	// A file that is shorter than it was.
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
		{"", "is not a JSON object"},
		{"[]", "is not a JSON object"},
		{"{\"\xff\":1}", "is not a JSON object"},
		{strings.Repeat(`{"a":`, 20000), "is not a JSON object"},
		{"{}", "has no weight_map, or an empty one"},
		{`{"weight_map":{}}`, "has no weight_map, or an empty one"},
		{`{"weight_map":[]}`, `"weight_map": is [, must be of the kind {`},
		{`{"weight_map":{"a":1}}`, `"weight_map": "a": is 1, must be a string`},
		{`{"weight_map":{"a":"1.safetensors","\u0061":"2.safetensors"}}`, `"weight_map": "a" is there twice`},
		{`{"weight_map":{"a":"1.safetensors"},"weight_map":{}}`, `"weight_map" is there twice`},
		{`{"weight_map":{"a":"b/1.safetensors"}}`, `tensor "a": is in "b/1.safetensors", must be in a .safetensors file beside the index`},
		{`{"weight_map":{"a":"/x.safetensors"}}`, `tensor "a": is in "/x.safetensors"`},
		{`{"weight_map":{"a":".."}}`, `tensor "a": is in ".."`},
		{`{"weight_map":{"a":""}}`, `tensor "a": is in ""`},
		{`{"weight_map":{"a":"pytorch_model.bin"}}`, `tensor "a": is in "pytorch_model.bin"`},
	} {
		_, err := ParseIndex([]byte(c.data))
		assert.ErrorContains(t, err, c.want, "%.80q", c.data)
	}
}

// Whatever an index names lies beside it.
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

// Whatever is read fits what the file has.
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

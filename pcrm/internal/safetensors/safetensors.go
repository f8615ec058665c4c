// Package safetensors reads files of the safetensors format, strictly:
//
//	8 bytes   n, the length of the header, little endian
//	n bytes   a JSON object, spaces after it allowed:
//	          "__metadata__": {string: string, ...}, optional
//	          NAME: {"dtype": string, "shape": [sizes], "data_offsets": [begin, end]}
//	the rest  the tensors, row-major and little endian, end to end from its first byte to its last
//
// Nothing is allocated for a length that the file only claims: what is returned are
// views of the bytes that are there.
package safetensors

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"os"
	"slices"
	"strconv"
	"unicode/utf8"
)

const (
	maxHeader = 100 << 20 // the limit of the format's own reader
	maxFile   = 4 << 30   // a sparse file may have any size
)

// dtypes are the element types that can be read and their sizes.
var dtypes = map[string]uint64{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4}

// File is what a file holds.
type File struct {
	Metadata map[string]string
	Tensors  map[string]Tensor
}

// Tensor is an array of little-endian elements; no dimensions are a scalar.
type Tensor struct {
	Dtype string // "F64", "F32", "F16", "BF16", "I64" or "I32"
	Shape []int
	Data  []byte
}

// Len is the number of elements.
func (t Tensor) Len() int { return len(t.Data) / int(dtypes[t.Dtype]) }

// Read parses a file. Errors: an [*os.PathError], a file over 4 GiB, and those of [Parse].
func Read(path string) (*File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, fmt.Errorf("is a %v of %d bytes, must be a regular file of at most %d", info.Mode().Type(), info.Size(), int64(maxFile))
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return Parse(data)
}

// Parse reads the bytes of a file, which the tensors go on using.
//
// Errors: a header that is cut off, over 100 MiB, no UTF-8 or no JSON of the form above;
// a name, or a key of an entry or of the metadata, that is there twice; an unknown key or
// dtype; a size that is not a plain number or whose bytes are not those of the offsets;
// offsets that overlap, leave a gap or do not end where the file ends.
func Parse(data []byte) (*File, error) {
	if len(data) < 8 {
		return nil, fmt.Errorf("has %d bytes, must have at least the 8 of the header's length", len(data))
	}
	n := binary.LittleEndian.Uint64(data)
	switch {
	case n > maxHeader:
		return nil, fmt.Errorf("header has %d bytes, must be at most %d", n, maxHeader)
	case n > uint64(len(data)-8):
		return nil, fmt.Errorf("header has %d bytes, but only %d follow its length: is the file truncated?", n, len(data)-8)
	}
	header, data := data[8:8+n], data[8+n:]
	if !utf8.Valid(header) || !json.Valid(header) || header[0] != '{' {
		return nil, errors.New("header is not a JSON object in UTF-8")
	}
	f := &File{Tensors: map[string]Tensor{}}
	var entries []entry
	h := walker{json.NewDecoder(bytes.NewReader(header))}
	h.UseNumber()
	if err := h.object(func(name string) (err error) {
		if name == "__metadata__" {
			f.Metadata, err = h.metadata()
			return err
		}
		e, err := h.entry()
		e.name = name
		entries = append(entries, e)
		return err
	}); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	// An empty tensor goes before the one that begins where it does.
	slices.SortFunc(entries, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.begin, b.begin), cmp.Compare(a.end, b.end))
	})
	var at uint64
	for _, e := range entries {
		switch {
		case e.begin != at:
			return nil, fmt.Errorf("tensor %q: data_offsets begin at %d, must at %d, where the one before ends", e.name, e.begin, at)
		case e.end > uint64(len(data)):
			return nil, fmt.Errorf("tensor %q: data_offsets end at %d, but there are %d bytes of data: is the file truncated?", e.name, e.end, len(data))
		}
		at = e.end
		f.Tensors[e.name] = Tensor{e.dtype, e.shape, data[e.begin:e.end:e.end]}
	}
	if at != uint64(len(data)) {
		return nil, fmt.Errorf("tensors end at %d, but there are %d bytes of data", at, len(data))
	}
	return f, nil
}

// entry is what the header says of a tensor.
type entry struct {
	name, dtype string
	shape       []int
	begin, end  uint64
}

// walker reads JSON that is known to be valid, token by token: decoding into structs
// would take null for 0 and the last of two equal keys.
type walker struct{ *json.Decoder }

// object calls member for each key of the object that comes next.
func (w walker) object(member func(key string) error) error {
	if err := w.open('{'); err != nil {
		return err
	}
	seen := map[string]bool{}
	for w.More() {
		key, err := w.text()
		if err == nil && seen[key] {
			return fmt.Errorf("%q is there twice", key)
		}
		seen[key] = true
		if err == nil {
			err = member(key)
		}
		if err != nil {
			return fmt.Errorf("%q: %w", key, err)
		}
	}
	_, err := w.Token()
	return err
}

func (w walker) open(delimiter json.Delim) error {
	if t, err := w.Token(); err != nil || t != delimiter {
		return fmt.Errorf("is %v, must be of the kind %v", t, delimiter)
	}
	return nil
}

func (w walker) text() (string, error) {
	t, err := w.Token()
	s, ok := t.(string)
	if err != nil || !ok {
		return "", fmt.Errorf("is %v, must be a string", t)
	}
	return s, nil
}

// numbers reads an array of sizes.
func (w walker) numbers() (list []uint64, err error) {
	if err := w.open('['); err != nil {
		return nil, err
	}
	for w.More() {
		t, err := w.Token()
		number, ok := t.(json.Number)
		if err != nil || !ok {
			return nil, fmt.Errorf("[%d] is %v, must be a number", len(list), t)
		}
		n, err := strconv.ParseUint(number.String(), 10, 64)
		if err != nil || n > math.MaxInt {
			return nil, fmt.Errorf("[%d] is %v, must be a size", len(list), number)
		}
		list = append(list, n)
	}
	_, err = w.Token()
	return list, err
}

func (w walker) metadata() (map[string]string, error) {
	m := map[string]string{}
	return m, w.object(func(key string) (err error) {
		m[key], err = w.text()
		return err
	})
}

func (w walker) entry() (e entry, err error) {
	var offsets, shape []uint64
	given := 0
	if err := w.object(func(key string) (err error) {
		given++
		switch key {
		case "dtype":
			e.dtype, err = w.text()
		case "shape":
			shape, err = w.numbers()
		case "data_offsets":
			offsets, err = w.numbers()
		default:
			return errors.New("is unknown")
		}
		return err
	}); err != nil {
		return e, err
	}
	size, ok := dtypes[e.dtype]
	switch {
	case given != 3:
		return e, errors.New("must have dtype, shape and data_offsets")
	case !ok:
		return e, fmt.Errorf("dtype is %q, must be F64, F32, F16, BF16, I64 or I32", e.dtype)
	case len(offsets) != 2 || offsets[0] > offsets[1]:
		return e, fmt.Errorf("data_offsets are %v, must be a begin and an end", offsets)
	}
	e.shape = make([]int, len(shape))
	for i, n := range shape {
		var over uint64
		if over, size = bits.Mul64(size, n); over != 0 {
			return e, fmt.Errorf("shape is %v, too large", shape)
		}
		e.shape[i] = int(n)
	}
	e.begin, e.end = offsets[0], offsets[1]
	if size != e.end-e.begin {
		return e, fmt.Errorf("shape %v of %s is %d bytes, but data_offsets are %v", shape, e.dtype, size, offsets)
	}
	return e, nil
}

// Package safetensors reads files in the safetensors format, strictly:
//
//	8 bytes   n, the length of the header, little endian
//	n bytes   a JSON object, optionally followed by spaces:
//	          "__metadata__": {string: string, ...}, optional
//	          NAME: {"dtype": string, "shape": [sizes], "data_offsets": [begin, end]}
//	the rest  the tensors, row-major and little endian, without gaps
//
// A length that a file only claims causes no allocation. The results are views of bytes that
// exist, or their positions.
package safetensors

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/bits"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pcrm-project/pcrm/pcrm/internal/half"
	"github.com/pcrm-project/pcrm/pcrm/internal/regular"
)

const (
	maxHeader = 100 << 20 // the limit of the reference implementation
	maxFile   = 4 << 30   // a sparse file may have any size
)

// dtypes maps the supported element types to their sizes. Types of quantized weights, which are
// meaningless without their scales, are not supported.
var dtypes = map[string]uint64{"F64": 8, "F32": 4, "F16": 2, "BF16": 2,
	"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}

// Size returns the number of bytes of an element, or 0 for a dtype that is not supported.
func Size(dtype string) int { return int(dtypes[dtype]) }

// File is the content of a file.
type File struct {
	Metadata map[string]string
	Tensors  map[string]Tensor
}

// Tensor is an array of little-endian elements. A scalar has no dimensions.
type Tensor struct {
	Dtype string // "F64", "F32", "F16", "BF16", "I64", "I32", ... "U8" or "BOOL"
	Shape []int
	Data  []byte
}

// Header describes the tensors of a file.
type Header struct {
	Raw      []byte // the file up to its data
	Metadata map[string]string
	Entries  []Entry // in the order of their data
}

// Entry describes a tensor in the bytes [Begin, End) of a file.
type Entry struct {
	Name, Dtype string
	Shape       []int
	Begin, End  int64
}

// Len returns the number of elements.
func (t Tensor) Len() int { return len(t.Data) / int(dtypes[t.Dtype]) }

// Read parses a file.
//
// Errors: an [*os.PathError]; a file over 4 GiB; those of [Parse].
func Read(path string) (*File, error) {
	file, size, err := regular.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if size > maxFile {
		return nil, fmt.Errorf("must have at most %d bytes, got %d", int64(maxFile), size)
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(file, data); err != nil {
		return nil, err
	}
	return Parse(data)
}

// Parse parses the bytes of a file. The tensors are views of data.
//
// Errors: those of [ReadHeader].
func Parse(data []byte) (*File, error) {
	h, err := ReadHeader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return nil, err
	}
	f := &File{Metadata: h.Metadata, Tensors: map[string]Tensor{}}
	for _, e := range h.Entries {
		f.Tensors[e.Name] = Tensor{e.Dtype, e.Shape, data[e.Begin:e.End:e.End]}
	}
	return f, nil
}

// ReadHeader reads only the header of a file of size bytes.
//
// Errors: a header that is truncated, over 100 MiB, not UTF-8 or not JSON of the form above;
// a repeated name, or a repeated key of an entry or of the metadata; an unknown key or dtype;
// a size that is not a plain number, or a shape that does not match the offsets; offsets that
// overlap, leave a gap or do not end at the end of the file; the errors of r.
func ReadHeader(r io.ReaderAt, size int64) (*Header, error) {
	if size < 8 {
		return nil, fmt.Errorf("must have at least 8 bytes, the header's length, got %d", size)
	}
	var length [8]byte
	if _, err := r.ReadAt(length[:], 0); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint64(length[:])
	switch {
	case n > maxHeader:
		return nil, fmt.Errorf("header must have at most %d bytes, got %d", maxHeader, n)
	case n > uint64(size-8):
		return nil, fmt.Errorf("header must have %d bytes, got %d: is the file truncated?", n, size-8)
	}
	h := &Header{Raw: make([]byte, 8+n)}
	if _, err := r.ReadAt(h.Raw, 0); err != nil {
		return nil, err
	}
	header := h.Raw[8:]
	if !isObject(header) || header[0] != '{' {
		return nil, errors.New("header must be a JSON object in UTF-8")
	}
	w := newWalker(header)
	if err := w.object(func(name string) (err error) {
		if name == "__metadata__" {
			h.Metadata, err = w.metadata()
			return err
		}
		e, err := w.entry()
		e.Name = name
		h.Entries = append(h.Entries, e)
		return err
	}); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	// An empty tensor comes before a tensor that begins at the same offset.
	slices.SortFunc(h.Entries, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(a.Begin, b.Begin), cmp.Compare(a.End, b.End))
	})
	at, data := int64(0), size-int64(len(h.Raw))
	for i := range h.Entries {
		e := &h.Entries[i]
		switch {
		case e.Begin != at:
			return nil, fmt.Errorf("tensor %q: data_offsets must begin at %d, where the previous tensor ends, got %d", e.Name, at, e.Begin)
		case e.End > data:
			return nil, fmt.Errorf("tensor %q: data_offsets must end within the %d bytes of data, got %d: is the file truncated?", e.Name, data, e.End)
		}
		at = e.End
		e.Begin, e.End = e.Begin+int64(len(h.Raw)), e.End+int64(len(h.Raw))
	}
	if at != data {
		return nil, fmt.Errorf("tensors must end at byte %d, where the data ends, got %d", data, at)
	}
	return h, nil
}

// ParseIndex reads the index of a checkpoint with several files. It returns the weight_map,
// which names the file of each tensor, and ignores everything else in the index.
//
// Errors: data that is not a JSON object in UTF-8; a weight_map that is missing, repeated or
// empty, or that repeats a name; a file that is not the plain name of a .safetensors file.
func ParseIndex(data []byte) (map[string]string, error) {
	if !isObject(data) {
		return nil, errors.New("must be a JSON object in UTF-8")
	}
	var files map[string]string
	w := newWalker(data)
	if err := w.object(func(key string) (err error) {
		if key == "weight_map" {
			files, err = w.metadata()
			return err
		}
		var ignored json.RawMessage
		return w.Decode(&ignored)
	}); err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, errors.New("must have a non-empty weight_map")
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		// A name with a folder could refer to any file on the machine.
		if file := files[name]; filepath.Base(file) != file || !strings.HasSuffix(file, ".safetensors") {
			return nil, fmt.Errorf("tensor %q: must be in a .safetensors file in the folder of the index, got %q", name, file)
		}
	}
	return files, nil
}

// isObject reports whether data is a JSON object that the walker can read.
func isObject(data []byte) bool {
	return utf8.Valid(data) && json.Valid(data) && bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte("{"))
}

func newWalker(data []byte) walker {
	w := walker{json.NewDecoder(bytes.NewReader(data))}
	w.UseNumber()
	return w
}

// walker reads valid JSON token by token. Decoding into structs would read null as 0 and would
// keep the last of two equal keys.
type walker struct{ *json.Decoder }

// object calls member for each key of the next object.
func (w walker) object(member func(key string) error) error {
	if err := w.open('{'); err != nil {
		return err
	}
	seen := map[string]bool{}
	for w.More() {
		key, err := w.text()
		if err == nil && seen[key] {
			return fmt.Errorf("%q must not be repeated", key)
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
		return fmt.Errorf("must begin with %v, got %v", delimiter, t)
	}
	return nil
}

func (w walker) text() (string, error) {
	t, err := w.Token()
	s, ok := t.(string)
	if err != nil || !ok {
		return "", fmt.Errorf("must be a string, got %v", t)
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
			return nil, fmt.Errorf("[%d] must be a number, got %v", len(list), t)
		}
		n, err := strconv.ParseUint(number.String(), 10, 64)
		if err != nil || n > math.MaxInt {
			return nil, fmt.Errorf("[%d] must be a size, got %v", len(list), number)
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

// entry reads an entry. Its offsets are still relative to the start of the data.
func (w walker) entry() (e Entry, err error) {
	var offsets, shape []uint64
	given := 0
	if err := w.object(func(key string) (err error) {
		given++
		switch key {
		case "dtype":
			e.Dtype, err = w.text()
		case "shape":
			shape, err = w.numbers()
		case "data_offsets":
			offsets, err = w.numbers()
		default:
			return errors.New("is an unknown key")
		}
		return err
	}); err != nil {
		return e, err
	}
	size, ok := dtypes[e.Dtype]
	switch {
	case given != 3:
		return e, errors.New("must have dtype, shape and data_offsets")
	case !ok:
		return e, fmt.Errorf("dtype must be one of %s, got %q", strings.Join(slices.Sorted(maps.Keys(dtypes)), ", "), e.Dtype)
	case len(offsets) != 2 || offsets[0] > offsets[1]:
		return e, fmt.Errorf("data_offsets must be a begin and an end, got %v", offsets)
	}
	e.Shape = make([]int, len(shape))
	for i, n := range shape {
		var over uint64
		if over, size = bits.Mul64(size, n); over != 0 {
			return e, fmt.Errorf("shape must have fewer than 2^64 bytes, got %v", shape)
		}
		e.Shape[i] = int(n)
	}
	e.Begin, e.End = int64(offsets[0]), int64(offsets[1])
	if size != offsets[1]-offsets[0] {
		return e, fmt.Errorf("data_offsets must span %d bytes for shape %v of %s, got %v", size, shape, e.Dtype, offsets)
	}
	return e, nil
}

// Float64s exactly converts the first len(dst) numbers of data. If dtype is not F64, F32, BF16 or
// F16, dst stays unchanged.
func Float64s(dst []float64, data []byte, dtype string) {
	order := binary.LittleEndian
	switch dtype {
	case "F64":
		for i := range dst {
			dst[i] = math.Float64frombits(order.Uint64(data[8*i:]))
		}
	case "F32":
		for i := range dst {
			dst[i] = float64(math.Float32frombits(order.Uint32(data[4*i:])))
		}
	case "BF16":
		for i := range dst {
			dst[i] = float64(math.Float32frombits(uint32(order.Uint16(data[2*i:])) << 16))
		}
	case "F16":
		for i := range dst {
			dst[i] = half.Float64(order.Uint16(data[2*i:]))
		}
	}
}

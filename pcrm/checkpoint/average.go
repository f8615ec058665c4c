// Package checkpoint averages the weights of checkpoints and divides tensors of a checkpoint
// by a number. A checkpoint is a folder of safetensors files, as transformers writes it.
package checkpoint

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/pcrm-project/pcrm/pcrm/internal/argument"
	"github.com/pcrm-project/pcrm/pcrm/internal/parallel"
	"github.com/pcrm-project/pcrm/pcrm/internal/regular"
	"github.com/pcrm-project/pcrm/pcrm/internal/safetensors"
)

// Error reports a checkpoint that cannot be read, averaged or divided.
type Error struct {
	Path   string // the file, or the folder if no single file is at fault
	Reason string
}

func (e *Error) Error() string { return e.Path + ": " + e.Reason }

func bad(path, format string, args ...any) error { return &Error{path, fmt.Sprintf(format, args...)} }

const (
	// pieceElements elements of each checkpoint are read at once. This makes the cost of calls
	// negligible, and the pieces of a few checkpoints fit into a second-level cache.
	pieceElements = 1 << 15
	// stepBytes bytes of the average are written by each [Average.Next], in a few milliseconds.
	stepBytes = 16 << 20
)

// Average is the weighted mean of the weights of M checkpoints ("WARM: On the Benefits
// of Weight Averaged Reward Models", arXiv 2401.12187),
//
//	theta = sum_i w_i theta_i / sum_i w_i
//
// computed in float64. The sum runs in the order of the checkpoints, and every operation is
// rounded on its own. The quotient is rounded once, to nearest even, to the type of theta_i.
// Weights of 1 with a final division keep the sum of a few numbers of similar magnitude exact,
// so a mean exactly halfway between two numbers is recognized as such; weights of 1/3, say,
// would move it to one side. The mean of M equal numbers is that number bit for bit, except
// that a NaN may change its payload.
//
// The files of the average have the names and headers of the first checkpoint's files. The
// other checkpoints may be split into files differently. Tensors of integers and booleans must
// be equal in all checkpoints and are copied. NaNs and infinities are averaged like other
// numbers.
type Average struct {
	Weights   []float64 // w_i / sum_i w_i
	Bytes     int64     // of the average's weights
	Tensors   int
	NotFinite int64  // how many numbers written so far are NaN or infinite
	First     string // the tensor with the first such number

	scaled  []float64 // the weights times a power of two; sum is their sum
	sum     float64
	models  []*model
	out     []*os.File // for each file of the first model
	file    int        // where Next continues: the file,
	entry   int        // the tensor in it
	at      int64      // and the byte in the tensor
	buffers sync.Pool
}

// model is a checkpoint whose headers have been read.
type model struct {
	folder string
	shards []*shard // in the order of their names
	byName map[string]tensor
	index  []byte // nil for a single shard without an index
}

type shard struct {
	path   string
	file   *os.File
	header *safetensors.Header
}

type tensor struct {
	*shard
	safetensors.Entry
}

// piece is the part [at, at+n), in bytes, of a tensor of the average.
type piece struct {
	file  int
	entry safetensors.Entry
	at, n int64
}

// New opens checkpoints and checks that they can be averaged. Each is a folder with a
// model.safetensors, or with the files that its model.safetensors.index.json lists.
// weights must be finite and not negative; nil means 1 for each. The caller must call Close.
//
// Errors: a *pcrm.ArgumentError for fewer than two folders, a wrong number of weights or
// a weight out of range; an [*Error] for a file that is truncated, malformed or does not match
// the index, and for a tensor that is missing, additional, or differs in dtype, shape or
// integer values from the first checkpoint; an [*os.PathError].
func New(folders []string, weights []float64) (a *Average, err error) {
	a = &Average{}
	defer func() {
		if err != nil {
			a.Close()
			a = nil
		}
	}()
	if len(folders) < 2 {
		return a, argument.Errorf("checkpoints", -1, "must have at least 2 elements, got %d", len(folders))
	}
	if weights == nil {
		weights = slices.Repeat([]float64{1}, len(folders))
	}
	if err := a.setWeights(weights, len(folders)); err != nil {
		return a, err
	}
	for _, folder := range folders {
		m := &model{folder: folder, byName: map[string]tensor{}}
		a.models = append(a.models, m)
		if err := m.open(Single); err != nil {
			return a, err
		}
		if err := m.mustMatch(a.models[0]); err != nil {
			return a, err
		}
	}
	for _, s := range a.models[0].shards {
		for _, e := range s.header.Entries {
			a.Tensors++
			a.Bytes += e.End - e.Begin
			if !isFloat(e.Dtype) {
				if err := a.mustBeEqual(e); err != nil {
					return a, err
				}
			}
		}
	}
	return a, nil
}

func isFloat(dtype string) bool {
	return strings.HasSuffix(dtype, "F16") || strings.HasPrefix(dtype, "F")
}

func (a *Average) setWeights(weights []float64, n int) error {
	if len(weights) != n {
		return argument.Errorf("weights", -1, "must have %d elements, one per checkpoint, got %d", n, len(weights))
	}
	total := 0.0
	for i, w := range weights {
		if !(w >= 0) || math.IsInf(w, 1) {
			return argument.Errorf("weights", i, "must be at least 0 and finite, got %v", w)
		}
		total += w
	}
	if total == 0 || math.IsInf(total, 1) {
		return argument.Errorf("weights", -1, "must have a finite sum greater than 0, got %v", total)
	}
	// With a sum in [1/2, 1), no product and no sum can overflow. Scaling by a power of two
	// does not change the digits of the quotient.
	_, exponent := math.Frexp(total)
	for _, w := range weights {
		a.Weights = append(a.Weights, w/total)
		a.scaled = append(a.scaled, math.Ldexp(w, -exponent))
		a.sum += a.scaled[len(a.scaled)-1]
	}
	return nil
}

// open reads the headers of the file with this name, or of the files that its index lists.
func (m *model) open(name string) error {
	info, err := os.Stat(m.folder)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return bad(m.folder, "must be the folder of a checkpoint, got a %v", describe(info.Mode()))
	}
	// This is the order in which transformers looks for files.
	single := filepath.Join(m.folder, name)
	index := single + indexSuffix
	_, err = os.Stat(single)
	if err == nil {
		return m.openShard(single)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if _, err = os.Stat(index); errors.Is(err, os.ErrNotExist) {
		return bad(m.folder, "must contain %s or %s: other kinds of checkpoints are not supported", name, name+indexSuffix)
	}
	if m.index, err = readIndex(index); err != nil {
		return err
	}
	files, err := safetensors.ParseIndex(m.index)
	if err != nil {
		return bad(index, "%v", err)
	}
	for name, file := range files {
		files[name] = filepath.Join(m.folder, file)
	}
	paths := make([]string, 0, len(files))
	for _, path := range files {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	for _, path := range slices.Compact(paths) {
		if err := m.openShard(path); err != nil {
			return err
		}
	}
	for _, s := range m.shards {
		for _, e := range s.header.Entries {
			if files[e.Name] != s.path {
				return bad(s.path, "tensor %q: is in this file, but %s names another", e.Name, name+indexSuffix)
			}
			delete(files, e.Name)
		}
	}
	if len(files) > 0 {
		missing := leastKey(files)
		return bad(files[missing], "tensor %q: is missing, but listed in %s", missing, name+indexSuffix)
	}
	return nil
}

// The names of the files of a checkpoint.
const (
	Single = "model.safetensors"
	Index  = Single + indexSuffix

	indexSuffix = ".index.json"
)

func (m *model) close() {
	for _, s := range m.shards {
		s.file.Close()
	}
}

func leastKey[V any](m map[string]V) string {
	least, found := "", false
	for name := range m {
		if !found || name < least {
			least, found = name, true
		}
	}
	return least
}

func describe(mode os.FileMode) string {
	if mode.IsRegular() {
		return "file"
	}
	return "special file"
}

// readIndex reads an index, up to the size limit of a header.
func readIndex(path string) ([]byte, error) {
	file, _, err := regular.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	const limit = 100 << 20
	data, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err == nil && len(data) > limit {
		err = bad(path, "must have at most %d bytes", limit)
	}
	return data, err
}

func (m *model) openShard(path string) error {
	file, size, err := regular.Open(path)
	if err != nil {
		return err
	}
	s := &shard{path: path, file: file}
	m.shards = append(m.shards, s)
	if s.header, err = safetensors.ReadHeader(file, size); err != nil {
		if _, failed := errors.AsType[*os.PathError](err); failed {
			return err
		}
		return bad(path, "%v", err)
	}
	for _, e := range s.header.Entries {
		if other, twice := m.byName[e.Name]; twice {
			return bad(path, "tensor %q: is also in %s", e.Name, other.path)
		}
		m.byName[e.Name] = tensor{s, e}
	}
	if len(s.header.Entries) == 0 {
		return bad(path, "must have at least one tensor")
	}
	return nil
}

// mustMatch compares names, dtypes and shapes.
func (m *model) mustMatch(first *model) error {
	for _, s := range first.shards {
		for _, want := range s.header.Entries {
			got, ok := m.byName[want.Name]
			switch {
			case !ok:
				return bad(m.folder, "tensor %q: is missing, but %s has it", want.Name, s.path)
			case got.Dtype != want.Dtype:
				return bad(got.path, "tensor %q: must be %s, as in %s, got %s", want.Name, want.Dtype, s.path, got.Dtype)
			case !slices.Equal(got.Shape, want.Shape):
				return bad(got.path, "tensor %q: must have shape %v, as in %s, got %v", want.Name, want.Shape, s.path, got.Shape)
			}
		}
	}
	for _, s := range m.shards {
		for _, e := range s.header.Entries {
			if _, ok := first.byName[e.Name]; !ok {
				return bad(s.path, "tensor %q: is missing from %s", e.Name, first.folder)
			}
		}
	}
	return nil
}

// readAt reads a part of a tensor.
func (t tensor) readAt(dst []byte, at int64) error {
	_, err := t.file.ReadAt(dst, t.Begin+at)
	if err == io.EOF {
		return bad(t.path, "tensor %q: the file was truncated while it was read", t.Name)
	}
	return err
}

// mustBeEqual compares tensors of integers and booleans, which cannot be averaged.
func (a *Average) mustBeEqual(e safetensors.Entry) error {
	first := a.models[0].byName[e.Name]
	size := int64(safetensors.Size(e.Dtype))
	want, got := make([]byte, pieceElements*size), make([]byte, pieceElements*size)
	for at := int64(0); at < e.End-e.Begin; at += int64(len(want)) {
		n := min(int64(len(want)), e.End-e.Begin-at)
		if err := first.readAt(want[:n], at); err != nil {
			return err
		}
		for _, m := range a.models[1:] {
			other := m.byName[e.Name]
			if err := other.readAt(got[:n], at); err != nil {
				return err
			}
			for i := int64(0); i < n && !bytes.Equal(got[:n], want[:n]); i += size {
				if !bytes.Equal(got[i:i+size], want[i:i+size]) {
					return bad(other.path, "tensor %q: element %d must equal that of %s: tensors of %s are not averaged",
						e.Name, (at+i)/size, first.path, e.Dtype)
				}
			}
		}
	}
	return nil
}

// Files returns the names of the files that Create makes.
func (a *Average) Files() []string {
	var names []string
	for _, s := range a.models[0].shards {
		names = append(names, filepath.Base(s.path))
	}
	if a.models[0].index != nil {
		names = append(names, Index)
	}
	return names
}

// Create creates the files of the average in a folder, without their numbers.
//
// Errors: an [*os.PathError], for example if a file already exists.
func (a *Average) Create(folder string) error {
	if a.models[0].index != nil {
		if err := os.WriteFile(filepath.Join(folder, Index), a.models[0].index, 0o666); err != nil {
			return err
		}
	}
	for _, s := range a.models[0].shards {
		file, err := os.OpenFile(filepath.Join(folder, filepath.Base(s.path)), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
		if err != nil {
			return err
		}
		a.out = append(a.out, file)
		if _, err := file.Write(s.header.Raw); err != nil {
			return err
		}
	}
	return nil
}

// Next writes the next 16 MiB of the average, or the remainder, and returns the number of
// bytes written. It returns 0 when everything is written and on the disk. It uses as many
// threads as pcrm.SetNumThreads allows. After an error the average cannot be continued.
//
// Errors: an [*Error] for a file that became shorter; an [*os.PathError].
func (a *Average) Next() (int64, error) {
	var pieces []piece
	var total int64
	for total < stepBytes && a.file < len(a.out) {
		entries := a.models[0].shards[a.file].header.Entries
		if a.entry == len(entries) {
			a.file, a.entry = a.file+1, 0
			continue
		}
		e := entries[a.entry]
		n := min(int64(pieceElements*safetensors.Size(e.Dtype)), e.End-e.Begin-a.at)
		if n > 0 {
			pieces = append(pieces, piece{a.file, e, a.at, n})
		}
		total += n
		if a.at += n; a.at == e.End-e.Begin {
			a.entry, a.at = a.entry+1, 0
		}
	}
	if total == 0 {
		return 0, a.finish()
	}
	notFinite, errs := make([]int64, len(pieces)), make([]error, len(pieces))
	parallel.Rows(len(pieces), 1, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			notFinite[i], errs[i] = a.write(pieces[i])
		}
	})
	for i, p := range pieces {
		if errs[i] != nil {
			return 0, errs[i]
		}
		if a.NotFinite == 0 && notFinite[i] > 0 {
			a.First = p.entry.Name
		}
		a.NotFinite += notFinite[i]
	}
	return total, nil
}

// finish flushes the files to the disk.
func (a *Average) finish() error {
	for _, file := range a.out {
		if err := errors.Join(file.Sync(), file.Close()); err != nil {
			return err
		}
	}
	a.out = nil
	return nil
}

// buffers hold the memory of a thread for one piece. Its size does not depend on the tensor.
type buffers struct {
	in   [][]byte // of each checkpoint
	out  []byte
	sums [block]float64
}

// write averages a piece and returns the number of its numbers that are not finite.
func (a *Average) write(p piece) (notFinite int64, err error) {
	b, _ := a.buffers.Get().(*buffers)
	if b == nil {
		b = &buffers{in: make([][]byte, len(a.models))}
	}
	defer a.buffers.Put(b)
	models := a.models
	if !isFloat(p.entry.Dtype) {
		models = models[:1] // they are equal
	}
	for i, m := range models {
		b.in[i] = slices.Grow(b.in[i][:0], int(p.n))[:p.n]
		if err := m.byName[p.entry.Name].readAt(b.in[i], p.at); err != nil {
			return 0, err
		}
	}
	data := b.in[0]
	if len(models) > 1 {
		b.out = slices.Grow(b.out[:0], int(p.n))[:p.n]
		data = b.out
		notFinite = mean(data, b.in, p.entry.Dtype, a.scaled, a.sum, b.sums[:])
	}
	_, err = a.out[p.file].WriteAt(data, p.entry.Begin+p.at)
	return notFinite, err
}

// Close closes all files, including those of an unfinished average.
func (a *Average) Close() {
	for _, m := range a.models {
		m.close()
	}
	for _, file := range a.out {
		file.Close()
	}
	a.models, a.out = nil, nil
}

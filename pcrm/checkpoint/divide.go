package checkpoint

import (
	"math"
	"os"
	"path/filepath"

	"github.com/pcrm-project/pcrm/pcrm/internal/argument"
	"github.com/pcrm-project/pcrm/pcrm/internal/regular"
	"github.com/pcrm-project/pcrm/pcrm/internal/safetensors"
)

// Tensor describes a tensor of a checkpoint.
type Tensor struct {
	File  string `json:"file"` // its name in the folder
	Name  string `json:"name"`
	Dtype string `json:"dtype"`
	Shape []int  `json:"shape"`
}

// Tensors lists the tensors of a checkpoint, file by file, in the order of their data. It reads
// the file with this name, such as [Single], or otherwise the files that NAME.index.json lists.
//
// Errors: those of [New] for one checkpoint.
func Tensors(folder, name string) ([]Tensor, error) {
	m := &model{folder: folder, byName: map[string]tensor{}}
	defer m.close()
	if err := m.open(name); err != nil {
		return nil, err
	}
	var list []Tensor
	for _, s := range m.shards {
		for _, e := range s.header.Entries {
			list = append(list, Tensor{filepath.Base(s.path), e.Name, e.Dtype, e.Shape})
		}
	}
	return list, nil
}

// Divide divides the numbers of the named tensors of a safetensors file in place. It computes
// in float64 and rounds to nearest even, to the type of the tensor. All other bytes of the file
// stay the same. If one of the tensors is invalid, nothing is written.
//
// Errors: a *pcrm.ArgumentError for a divisor that is not greater than 0 or is infinite; an
// [*Error] for a file that is truncated or malformed, a tensor that is missing or does not hold
// floating-point numbers, or a quotient that is NaN or infinite; an [*os.PathError].
func Divide(path string, names []string, divisor float64) error {
	if err := argument.Positive("divisor", -1, divisor); err != nil {
		return err
	}
	if math.IsInf(divisor, 1) {
		return argument.Errorf("divisor", -1, "must be finite, got %v", divisor)
	}
	in, size, err := regular.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	header, err := safetensors.ReadHeader(in, size)
	if err != nil {
		return bad(path, "%v", err)
	}
	byName := map[string]tensor{}
	for _, e := range header.Entries {
		byName[e.Name] = tensor{&shard{path: path, file: in}, e}
	}
	quotients := make([][]byte, len(names))
	for i, name := range names {
		t, ok := byName[name]
		if !ok {
			return bad(path, "tensor %q: is missing", name)
		}
		if quotients[i], err = t.divided(divisor); err != nil {
			return err
		}
	}
	out, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer out.Close()
	for i, name := range names {
		if _, err := out.WriteAt(quotients[i], byName[name].Begin); err != nil {
			return err
		}
	}
	return out.Close()
}

// divided returns the bytes of the divided tensor.
func (t tensor) divided(divisor float64) ([]byte, error) {
	if !isFloat(t.Dtype) {
		return nil, bad(t.path, "tensor %q: must be F64, F32, F16 or BF16, got %s", t.Name, t.Dtype)
	}
	data := make([]byte, t.End-t.Begin)
	if err := t.readAt(data, 0); err != nil {
		return nil, err
	}
	x := make([]float64, len(data)/safetensors.Size(t.Dtype))
	safetensors.Float64s(x, data, t.Dtype)
	for i := range x {
		x[i] /= divisor
	}
	encode(data, x, t.Dtype)
	safetensors.Float64s(x, data, t.Dtype)
	for i, v := range x {
		if v-v != 0 {
			return nil, bad(t.path, "tensor %q: element %d divided by %v must be finite in %s, got %v", t.Name, i, divisor, t.Dtype, v)
		}
	}
	return data, nil
}

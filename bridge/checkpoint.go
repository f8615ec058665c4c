package bridge

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/pcrm-project/pcrm/pcrm/checkpoint"
)

// averages holds the averages that Python has open, by handle. Python requests one step at a
// time, so that it can be interrupted between steps.
var (
	averages    = map[int64]*checkpoint.Average{}
	averagesOf  int64 // the number of averages so far, which is the last handle
	averagesMux sync.Mutex
)

// AverageNew calls checkpoint.New. checkpoints is a JSON list of folders, and weights has n
// float64; an n of -1 means nil. It returns a JSON object with handle, weights, tensors, bytes
// and files (names).
func AverageNew(checkpoints string, weights uintptr, n int64) (info string, err error) {
	defer convert(&err)
	var folders []string
	if err := json.Unmarshal([]byte(checkpoints), &folders); err != nil {
		return "", err
	}
	var given []float64
	if n >= 0 {
		given = append([]float64{}, slice[float64](weights, n)...)
	}
	a, err := checkpoint.New(folders, given)
	if err != nil {
		return "", checkpointError(err)
	}
	averagesMux.Lock()
	defer averagesMux.Unlock()
	averagesOf++
	averages[averagesOf] = a
	text, err := json.Marshal(map[string]any{
		"handle": averagesOf, "weights": a.Weights, "tensors": a.Tensors, "bytes": a.Bytes, "files": a.Files(),
	})
	return string(text), err
}

// AverageCreate calls checkpoint.Average.Create.
func AverageCreate(handle int64, folder string) (ok bool, err error) {
	defer convert(&err)
	a, err := average(handle)
	if err == nil {
		err = a.Create(folder)
	}
	return err == nil, checkpointError(err)
}

// AverageNext calls checkpoint.Average.Next.
func AverageNext(handle int64) (written int64, err error) {
	defer convert(&err)
	a, err := average(handle)
	if err == nil {
		written, err = a.Next()
	}
	return written, checkpointError(err)
}

// AverageClose calls checkpoint.Average.Close and returns a JSON object with the average's
// not_finite and first.
func AverageClose(handle int64) (found string, err error) {
	defer convert(&err)
	a, err := average(handle)
	if err != nil {
		return "", err
	}
	a.Close()
	averagesMux.Lock()
	defer averagesMux.Unlock()
	delete(averages, handle)
	text, err := json.Marshal(map[string]any{"not_finite": a.NotFinite, "first": a.First})
	return string(text), err
}

// CheckpointTensors calls checkpoint.Tensors and returns a JSON list of objects with file, name,
// dtype and shape.
func CheckpointTensors(folder, name string) (tensors string, err error) {
	defer convert(&err)
	list, err := checkpoint.Tensors(folder, name)
	if err != nil {
		return "", checkpointError(err)
	}
	text, err := json.Marshal(list)
	return string(text), err
}

// DivideTensors calls checkpoint.Divide. names is a JSON list.
func DivideTensors(path, names string, divisor float64) (ok bool, err error) {
	defer convert(&err)
	var list []string
	if err := json.Unmarshal([]byte(names), &list); err != nil {
		return false, err
	}
	err = checkpoint.Divide(path, list, divisor)
	return err == nil, checkpointError(err)
}

func average(handle int64) (*checkpoint.Average, error) {
	averagesMux.Lock()
	defer averagesMux.Unlock()
	if a, ok := averages[handle]; ok {
		return a, nil
	}
	return nil, fmt.Errorf("%saverage %d must be open, but was closed or never opened", runtimeError, handle)
}

func checkpointError(err error) error {
	if _, refused := errors.AsType[*checkpoint.Error](err); refused {
		return errors.New(valueError + err.Error())
	}
	return fileError(err)
}

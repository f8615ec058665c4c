package prior_test

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pcrm-project/pcrm/pcrm"
	"github.com/pcrm-project/pcrm/pcrm/prior"
)

func TestLengthRatio(t *testing.T) {
	for _, c := range []struct {
		chosen, rejected []int64
		pad              int64
		want             float64
	}{
		{[]int64{1, 2, 3}, []int64{1, 9}, prior.NoPad, 0.5},
		{[]int64{1, 2, 3, 0}, []int64{1, 9, 0, 0}, 0, 0.5},
		{[]int64{1, 2, 3, 0}, []int64{1, 9}, 0, 0.5}, // rows of different widths
		{[]int64{1, 2}, []int64{1, 2}, prior.NoPad, 1},
		{[]int64{1, 2, 0}, []int64{1, 2, 0}, 0, 1}, // the authors' script gives 0
		{nil, nil, prior.NoPad, 1},
		{[]int64{1, 2}, []int64{1}, prior.NoPad, 0},
		{[]int64{1, 0, 2, 0}, []int64{1, 0, 3, 4}, 0, 0.5}, // a pad id in the prompt does not end a response
		{[]int64{1, 2, 0}, []int64{1, 3, 0}, prior.NoPad, 1},
	} {
		assert.Equal(t, c.want, prior.LengthRatio(c.chosen, c.rejected, c.pad), "%v", c)
		assert.Equal(t, c.want, prior.LengthRatio(c.rejected, c.chosen, c.pad), "swapped %v", c)
	}
	assert.Equal(t, 0.5, prior.LengthRatio([]int{1, 2, 3}, []int{1, 9}, prior.NoPad), "ids of Go's own int")
}

func TestLengthRatios(t *testing.T) {
	dst := make([]float32, 2)
	chosen, rejected := []int64{1, 2, 3, 7, 8}, []int64{1, 9, 7, 8}
	require.NoError(t, prior.LengthRatios(dst, chosen, []int64{0, 3, 5}, rejected, []int64{0, 2, 4}, prior.NoPad))
	assert.Equal(t, []float32{0.5, 1}, dst)
	require.NoError(t, prior.LengthRatios([]float32{}, []int32(nil), []int64{0}, nil, []int64{0}, prior.NoPad))
	for message, offsets := range map[string][]int64{
		"chosen_ids must have 3 offsets for 2 rows, got 2":    {0, 5},
		"chosen_ids[2] must have an offset in [3, 5], got 6":  {0, 3, 6},
		"chosen_ids[2] must have an offset in [3, 5], got 1":  {0, 3, 1},
		"chosen_ids[0] must have an offset in [0, 5], got -1": {-1, 3, 5},
	} {
		assert.EqualError(t, prior.LengthRatios(dst, chosen, offsets, rejected, []int64{0, 2, 4}, prior.NoPad), message)
	}
	assert.ErrorContains(t, prior.LengthRatios(dst, chosen, []int64{0, 3, 5}, rejected, []int64{0}, prior.NoPad), "rejected_ids must have 3 offsets for 2 rows, got 1")
}

// plainLengthRatio is the definition, one id at a time.
func plainLengthRatio(chosen, rejected []int64, pad int64) float64 {
	k := 0
	for k < len(chosen) && k < len(rejected) && chosen[k] == rejected[k] {
		k++
	}
	a, b := 0, 0
	for k+a < len(chosen) && (pad == prior.NoPad || chosen[k+a] != pad) {
		a++
	}
	for k+b < len(rejected) && (pad == prior.NoPad || rejected[k+b] != pad) {
		b++
	}
	if a == b {
		return 1
	}
	return float64(min(a, b)) / float64(max(a, b))
}

// A first difference at every position around the blocks of the comparison.
func TestLengthRatioOfLongPrefixes(t *testing.T) {
	for length := range 100 {
		for k := range length {
			chosen, rejected := make([]int64, length), make([]int64, length+k%3)
			for i := range chosen {
				chosen[i], rejected[i] = int64(i%7), int64(i%7)
			}
			chosen[k] = 1 << 40 // differs only in the upper half of an id
			for _, pad := range []int64{prior.NoPad, 3} {
				require.Equal(t, plainLengthRatio(chosen, rejected, pad), prior.LengthRatio(chosen, rejected, pad), "%d of %d", k, length)
			}
		}
	}
}

func TestLengthRatiosOfManyRows(t *testing.T) {
	t.Run("int32 int32", lengthRatiosOfManyRows[int32, int32])
	t.Run("int32 int64", lengthRatiosOfManyRows[int32, int64])
	t.Run("int64 int32", lengthRatiosOfManyRows[int64, int32])
	t.Run("int64 int64", lengthRatiosOfManyRows[int64, int64])
}

func lengthRatiosOfManyRows[I, O prior.Int](t *testing.T) {
	chosen, chosenOffsets, rejected, rejectedOffsets := raggedIDs[I, O](5000)
	for _, pad := range []I{prior.NoPad, 1} {
		dst := make([]float32, 5000)
		require.NoError(t, prior.LengthRatios(dst, chosen, chosenOffsets, rejected, rejectedOffsets, pad))
		for i, got := range dst {
			want := plainLengthRatio(int64s(chosen[chosenOffsets[i]:chosenOffsets[i+1]]), int64s(rejected[rejectedOffsets[i]:rejectedOffsets[i+1]]), int64(pad))
			require.Equal(t, float32(want), got, "row %d", i)
		}
	}
}

func int64s[I prior.Int](ids []I) (out []int64) {
	for _, id := range ids {
		out = append(out, int64(id))
	}
	return out
}

// raggedIDs returns pairs with a common start of up to 150 ids.
func raggedIDs[I, O prior.Int](rows int) (chosen []I, chosenOffsets []O, rejected []I, rejectedOffsets []O) {
	r := rand.New(rand.NewPCG(9, 10))
	chosenOffsets, rejectedOffsets = []O{0}, []O{0}
	for range rows {
		for range r.IntN(150) {
			id := I(r.IntN(50))
			chosen, rejected = append(chosen, id), append(rejected, id)
		}
		for range r.IntN(60) {
			chosen = append(chosen, I(r.IntN(50)))
		}
		for range r.IntN(60) {
			rejected = append(rejected, I(r.IntN(50)))
		}
		chosenOffsets, rejectedOffsets = append(chosenOffsets, O(len(chosen))), append(rejectedOffsets, O(len(rejected)))
	}
	return chosen, chosenOffsets, rejected, rejectedOffsets
}

// Arbitrary offsets give an error or the plain result, but never a panic or a value from outside a
// row. RandomUniforms takes the same columns.
func FuzzLengthRatios(f *testing.F) {
	offsets := func(o ...int32) (data []byte) {
		for _, v := range o {
			data = binary.LittleEndian.AppendUint32(data, uint32(v))
		}
		return data
	}
	f.Add([]byte{1, 2, 3, 7, 8}, offsets(0, 3, 5), []byte{1, 9, 7, 8}, offsets(0, 2, 4), 2, int32(0))
	f.Add([]byte{1, 2}, offsets(0, -1, 2), []byte{1}, offsets(0, 1, 1), 2, int32(-1))
	f.Add([]byte{}, offsets(0), []byte{}, offsets(1<<30), 0, int32(2))
	f.Add([]byte{5}, offsets(1, 1), []byte{5}, offsets(0, 1<<30), 1, int32(5))
	f.Fuzz(func(t *testing.T, chosen, chosenOffsets, rejected, rejectedOffsets []byte, rows int, pad int32) {
		rows &= 0xff
		c, co := int32s(chosen), offsetsOf(chosenOffsets)
		r, ro := int32s(rejected), offsetsOf(rejectedOffsets)
		ratios, u := make([]float64, rows), make([]float32, rows)
		err := prior.LengthRatios(ratios, c, co, r, ro, pad)
		uErr := prior.RandomUniforms(u, 1, c, co, r, ro, pad)
		if !ascend(co, rows, len(c)) || !ascend(ro, rows, len(r)) {
			var argument *pcrm.ArgumentError
			require.ErrorAs(t, err, &argument)
			require.Equal(t, err, uErr)
			return
		}
		require.NoError(t, err)
		require.NoError(t, uErr)
		for i := range rows {
			a, b := c[co[i]:co[i+1]], r[ro[i]:ro[i+1]]
			require.Equal(t, plainLengthRatio(int64s(a), int64s(b), int64(pad)), ratios[i])
			require.Equal(t, prior.RandomUniform(1, int64s(a), int64s(b), int64(pad)), float64(u[i]))
		}
	})
}

func int32s(data []byte) (ids []int32) {
	for _, b := range data {
		ids = append(ids, int32(b%8))
	}
	return ids
}

func offsetsOf(data []byte) (o []int32) {
	for ; len(data) >= 4; data = data[4:] {
		o = append(o, int32(binary.LittleEndian.Uint32(data)))
	}
	return o
}

func ascend(offsets []int32, rows, values int) bool {
	if len(offsets) != rows+1 || offsets[0] < 0 || int(offsets[rows]) > values {
		return false
	}
	for i := range rows {
		if offsets[i] > offsets[i+1] {
			return false
		}
	}
	return true
}

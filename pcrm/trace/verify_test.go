package trace_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pcrm-project/pcrm/pcrm"
	"github.com/pcrm-project/pcrm/pcrm/internal/testkit"
	"github.com/pcrm-project/pcrm/pcrm/trace"
)

// tracedTensor is a tensor to write to a trace. Its values are exact in its dtype.
type tracedTensor struct {
	dtype  string
	shape  []int
	values []float64
}

// traced is a trace file to write.
type traced struct {
	metadata map[string]string
	tensors  map[string]*tracedTensor
}

// bytes is a small safetensors writer. It writes a header and the tensors in the order of their names.
func (f traced) bytes() []byte {
	var data []byte
	header := map[string]any{"__metadata__": f.metadata}
	order := binary.LittleEndian
	for _, name := range slices.Sorted(maps.Keys(f.tensors)) {
		t, begin := f.tensors[name], len(data)
		for _, v := range t.values {
			switch t.dtype {
			case "F64":
				data = order.AppendUint64(data, math.Float64bits(v))
			case "F32":
				data = order.AppendUint32(data, math.Float32bits(float32(v)))
			case "BF16":
				data = order.AppendUint16(data, uint16(math.Float32bits(float32(v))>>16))
			case "F16":
				data = order.AppendUint16(data, halfBits(v))
			case "I64":
				data = order.AppendUint64(data, uint64(int64(v)))
			}
		}
		header[name] = map[string]any{"dtype": t.dtype, "shape": t.shape, "data_offsets": []int{begin, len(data)}}
	}
	text, err := json.Marshal(header)
	if err != nil {
		panic(err)
	}
	return slices.Concat(order.AppendUint64(nil, uint64(len(text))), text, data)
}

// halfBits encodes a number that float16 can represent, except subnormals.
func halfBits(v float64) uint16 {
	sign := uint16(math.Float64bits(v) >> 48 & 0x8000)
	if v == 0 {
		return sign
	}
	fraction, exponent := math.Frexp(math.Abs(v))
	return sign | uint16(exponent+14)<<10 | uint16(fraction*2048)&0x3ff
}

func (f traced) name() string {
	rank, _ := strconv.Atoi(f.metadata["rank"])
	step, _ := strconv.Atoi(f.metadata["step"])
	return fmt.Sprintf("rank%05d-run%s-step%08d.safetensors", rank, f.metadata["run"], step)
}

func (f traced) write(t testing.TB, dir string) {
	require.NoError(t, os.WriteFile(filepath.Join(dir, f.name()), f.bytes(), 0o600))
}

// verify writes one file and verifies it.
func (f traced) verify(t testing.TB) trace.Report {
	dir := t.TempDir()
	f.write(t, dir)
	report, err := trace.Verify(dir)
	require.NoError(t, err)
	return report
}

var inf = math.Inf(1)

var traceConstraint = pcrm.Constraint{Beta1: 10, Beta2: 0.001, Beta3: -5, Cap: 40}

// traceOf records the results of our own loss in the computing type C. The scores are random multiples
// of 1/8, which every dtype can represent. Without a constraint, every fifth pair is unconstrained.
func traceOf[C pcrm.Float](form, dtype, reduction string, e, center float64, constrained bool, step int) traced {
	n, width := 9, 1
	r := rand.New(rand.NewPCG(uint64(step), 3))
	compute := map[bool]string{true: "F32", false: "F64"}[fmt.Sprintf("%T", C(0)) == "float32"]
	storage := map[string]string{"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]
	f := traced{map[string]string{
		"pcrm_trace": "2", "run": "0123456789ab", "form": form, "backend": "go", "dtype": dtype, "reduction": reduction,
		"label_smoothing": fmt.Sprint(e), "rank": "0", "step": fmt.Sprint(step), "versions": "none",
	}, map[string]*tracedTensor{}}
	shape := []int{n}
	if form == "token" {
		width = 7
		shape = []int{n, width}
	}
	eighths := func(span int) []float64 {
		x := make([]float64, n*width)
		for i := range x {
			x[i] = float64(r.IntN(2*span+1)-span) / 8
		}
		return x
	}
	put := func(name, dtype string, shape []int, values []float64) {
		f.tensors[name] = &tracedTensor{dtype, shape, values}
	}
	delta, prior := make([]C, n), make([]C, n)
	for i := range delta {
		delta[i] = C(1 + 20*r.Float64())
		if i%5 == 4 {
			delta[i] = C(inf)
		}
		prior[i] = C(r.Float64())
	}
	if constrained {
		f.metadata["constraint"] = `{"beta1":10,"beta2":0.001,"beta3":-5,"floor":null,"cap":40,"low":null,"high":null,"seed":0}`
		if err := pcrm.Deltas(delta, prior, traceConstraint); err != nil {
			panic(err)
		}
		put("prior", compute, []int{n}, testkit.Convert[float64](prior))
	}
	reductions := map[string]pcrm.Reduction{"mean": pcrm.Mean, "sum": pcrm.Sum, "none": pcrm.None}
	o := pcrm.RewardOptions{Reduction: reductions[reduction], LabelSmoothing: e, CenterRewardsCoefficient: center}
	losses, gradChosen, gradRejected := make([]C, n), make([]C, n*width), make([]C, n*width)
	var loss float64
	var err error
	if form == "dpo" {
		f.metadata["beta"] = "0.1"
		var logps [4][]float64
		for i, name := range []string{"policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps"} {
			logps[i] = eighths(127)
			put(name, storage, shape, logps[i])
		}
		chosenRewards, rejectedRewards := make([]C, n), make([]C, n)
		loss, err = pcrm.DPOLoss(losses, gradChosen, gradRejected, chosenRewards, rejectedRewards, testkit.Convert[C](logps[0]), testkit.Convert[C](logps[1]),
			testkit.Convert[C](logps[2]), testkit.Convert[C](logps[3]), delta, pcrm.DPOOptions{Beta: 0.1, Reduction: o.Reduction, LabelSmoothing: e})
		put("chosen_rewards", compute, shape, testkit.Convert[float64](chosenRewards))
		put("rejected_rewards", compute, shape, testkit.Convert[float64](rejectedRewards))
	} else {
		f.metadata["center_rewards_coefficient"] = fmt.Sprint(center)
		chosen, rejected := eighths(60), eighths(60)
		put("chosen_rewards", storage, shape, chosen)
		put("rejected_rewards", storage, shape, rejected)
		if form == "pair" {
			loss, err = pcrm.RewardLoss(losses, gradChosen, gradRejected, testkit.Convert[C](chosen), testkit.Convert[C](rejected), delta, o)
		} else {
			f.metadata["pad_token_id"] = "0"
			ids := [2][]int64{make([]int64, n*width), make([]int64, n*width)}
			for i := range n {
				for side := range ids {
					for at := range 2 + r.IntN(width-2) {
						ids[side][i*width+at] = 5
						if at > 0 {
							ids[side][i*width+at] += r.Int64N(2)
						}
					}
				}
			}
			float := func(ids []int64) (x []float64) {
				for _, id := range ids {
					x = append(x, float64(id))
				}
				return x
			}
			put("chosen_ids", "I64", shape, float(ids[0]))
			put("rejected_ids", "I64", shape, float(ids[1]))
			loss, err = pcrm.TokenLoss(losses, gradChosen, gradRejected, testkit.Convert[C](chosen), testkit.Convert[C](rejected), ids[0], ids[1], delta, 0, o)
		}
	}
	if err != nil {
		panic(err)
	}
	put("delta", compute, []int{n}, testkit.Convert[float64](delta))
	put("grad_chosen", compute, shape, testkit.Convert[float64](gradChosen))
	put("grad_rejected", compute, shape, testkit.Convert[float64](gradRejected))
	if reduction == "none" {
		put("loss", compute, []int{n}, testkit.Convert[float64](losses))
	} else {
		put("loss", compute, []int{}, []float64{float64(C(loss))})
	}
	return f
}

// traceFor is traceOf in the computing dtype.
func traceFor(form, dtype, reduction string, e, center float64, constrained bool, step int) traced {
	if dtype == "float64" {
		return traceOf[float64](form, dtype, reduction, e, center, constrained, step)
	}
	return traceOf[float32](form, dtype, reduction, e, center, constrained, step)
}

// The results of our own losses, in every form, dtype and reduction, are confirmed.
func TestVerify(t *testing.T) {
	forEachTier(t, func(t *testing.T) {
		dir, step := t.TempDir(), 0
		for _, form := range []string{"pair", "token", "dpo"} {
			for _, dtype := range []string{"float64", "float32", "bfloat16", "float16"} {
				for _, reduction := range []string{"mean", "sum", "none"} {
					for _, constrained := range []bool{false, true} {
						e := []float64{0, 0.1}[step%2]
						traceFor(form, dtype, reduction, e, 0.01*float64(step%3), constrained, step).write(t, dir)
						step++
					}
				}
			}
		}
		require.NoError(t, os.WriteFile(filepath.Join(dir, ".rank00000-step00000000.tmp"), []byte("half"), 0o600))
		report, err := trace.Verify(dir)
		require.NoError(t, err)
		assert.Empty(t, report.Failures)
		assert.True(t, report.OK())
		assert.Equal(t, step, report.Files)
		assert.Equal(t, 9*step, report.Pairs)
		require.Len(t, report.Rows, 12)
		assert.Equal(t, "dpo bfloat16", report.Rows[0].Form+" "+report.Rows[0].Dtype)
		for _, row := range report.Rows {
			assert.Equal(t, 6, row.Files)
			assert.Less(t, row.LossError, row.LossTolerance/2, "%+v", row)
			assert.Less(t, row.GradientError, row.GradientTolerance/2, "%+v", row)
		}
		assert.Contains(t, report.String(), fmt.Sprintf("%d files, %d pairs: ok\n", step, 9*step))
		t.Log("\n" + report.String())
	})
}

func forEachTier(t *testing.T, test func(*testing.T)) {
	for _, tier := range testkit.Tiers() {
		t.Run(tier, func(t *testing.T) {
			testkit.ForceTier(t, tier)
			test(t)
		})
	}
}

// A change of a single element of any tensor is detected and named.
func TestVerifyCorruptedElement(t *testing.T) {
	for _, form := range []string{"pair", "token", "dpo"} {
		for _, dtype := range []string{"float64", "bfloat16"} {
			good := traceFor(form, dtype, "none", 0, 0.01, true, 7)
			for name, tensor := range good.tensors {
				i := 0
				if form == "token" && len(tensor.shape) == 2 {
					// A token in the span of the first pair, where the ids of the two rows differ.
					i, _ = pcrm.Span(ints(good.tensors["chosen_ids"].values[:7]), ints(good.tensors["rejected_ids"].values[:7]), 0)
				}
				was := tensor.values[i]
				switch name {
				case "chosen_ids", "rejected_ids": // no longer in the span
					tensor.values[i] = good.tensors[map[string]string{"chosen_ids": "rejected_ids", "rejected_ids": "chosen_ids"}[name]].values[i]
				case "prior":
					tensor.values[i] /= 2
				default:
					tensor.values[i] += 0.25
				}
				report := good.verify(t)
				assert.False(t, report.OK(), "%s %s %s", form, dtype, name)
				if assert.NotEmpty(t, report.Failures) {
					assert.Contains(t, report.Failures[0], "rank00000-run0123456789ab-step00000007.safetensors: ")
					if _, computed := map[string]bool{"loss": true, "grad_chosen": true, "grad_rejected": true, "delta": true}[name]; computed {
						assert.Contains(t, report.Failures[0], fmt.Sprintf(": %s[%d]: got ", name, i))
					}
				}
				assert.Contains(t, report.String(), " failures\n")
				tensor.values[i] = was
			}
			assert.True(t, good.verify(t).OK())
		}
	}
	// The smallest change that differs from rounding.
	f := traceFor("pair", "float64", "mean", 0, 0, false, 1)
	f.tensors["grad_chosen"].values[3] *= 1 + 1e-11
	report := f.verify(t)
	require.Len(t, report.Failures, 1)
	assert.Contains(t, report.Failures[0], "rank00000-run0123456789ab-step00000001.safetensors: grad_chosen[3]: got ")
	assert.Equal(t, 1, report.Failed)
}

func ints(values []float64) (ids []int64) {
	for _, v := range values {
		ids = append(ids, int64(v))
	}
	return ids
}

// A gradient outside the span is exactly 0.
func TestVerifyOutsideTheSpan(t *testing.T) {
	f := traceFor("token", "float32", "mean", 0, 0, false, 2)
	f.tensors["grad_chosen"].values[0] = 1e-30 // the first token is the prompt's
	report := f.verify(t)
	require.Equal(t, 1, report.Failed)
	assert.Contains(t, report.Failures[0], "grad_chosen[0]: got 1.0000000031710769e-30, want 0 (tolerance 0)")
	f.tensors["grad_chosen"].values[0] = 0
	f.tensors["chosen_rewards"].values[0] = math.NaN() // ignored
	assert.True(t, f.verify(t).OK())
}

// Every invalid file is reported by name, with its own reason.
func TestVerifyBadFiles(t *testing.T) {
	for _, c := range []struct {
		form, want string
		change     func(traced)
	}{
		{"pair", `metadata pcrm_trace must be "2", got "1"`, func(f traced) { f.metadata["pcrm_trace"] = "1" }},
		{"pair", `metadata run is missing`, func(f traced) { delete(f.metadata, "run") }},
		{"pair", `metadata form is missing`, func(f traced) { delete(f.metadata, "form") }},
		{"pair", `metadata form must be pair, token or dpo, got "triple"`, func(f traced) { f.metadata["form"] = "triple" }},
		{"pair", `metadata backend is missing`, func(f traced) { delete(f.metadata, "backend") }},
		{"pair", `metadata dtype must be float64, float32, bfloat16 or float16, got "int8"`, func(f traced) { f.metadata["dtype"] = "int8" }},
		{"pair", `metadata reduction must be mean, sum or none, got ""`, func(f traced) { delete(f.metadata, "reduction") }},
		{"pair", `metadata label_smoothing is missing`, func(f traced) { delete(f.metadata, "label_smoothing") }},
		{"pair", `metadata label_smoothing must be a number, got "much"`, func(f traced) { f.metadata["label_smoothing"] = "much" }},
		{"pair", `label_smoothing must be in [0, 0.5), got 0.5`, func(f traced) { f.metadata["label_smoothing"] = "0.5" }},
		{"token", `metadata center_rewards_coefficient is missing`, func(f traced) { delete(f.metadata, "center_rewards_coefficient") }},
		{"dpo", `metadata center_rewards_coefficient must be 0 for dpo, got 0.1`, func(f traced) { f.metadata["center_rewards_coefficient"] = "0.1" }},
		{"dpo", `metadata beta is missing`, func(f traced) { delete(f.metadata, "beta") }},
		{"dpo", `metadata beta must be greater than 0 and finite, got 0`, func(f traced) { f.metadata["beta"] = "0" }},
		{"token", `metadata pad_token_id must be a number, got "1.5"`, func(f traced) { f.metadata["pad_token_id"] = "1.5" }},
		{"pair", `tensor delta is missing`, func(f traced) { delete(f.tensors, "delta") }},
		{"pair", `tensor chosen_rewards is missing`, func(f traced) { delete(f.tensors, "chosen_rewards") }},
		{"pair", `tensor loss is missing`, func(f traced) { delete(f.tensors, "loss") }},
		{"pair", `tensor grad_rejected is missing`, func(f traced) { delete(f.tensors, "grad_rejected") }},
		{"token", `tensor rejected_ids is missing`, func(f traced) { delete(f.tensors, "rejected_ids") }},
		{"dpo", `tensor rejected_rewards is missing`, func(f traced) { delete(f.tensors, "rejected_rewards") }},
		{"pair", `tensor prior is missing, but the constraint needs it`, func(f traced) { delete(f.tensors, "prior") }},
		{"pair", `tensor "pior" is unknown`, func(f traced) { f.tensors["pior"] = f.tensors["delta"] }},
		{"pair", `tensor chosen_rewards must be F32, got F64`, func(f traced) { f.tensors["chosen_rewards"].dtype = "F64" }},
		{"pair", `tensor prior must be F32 or F64, got F16`, func(f traced) { f.tensors["prior"].dtype = "F16" }},
		{"pair", `tensor chosen_rewards must have 1 dimensions and at least one score, got shape [3 3]`, func(f traced) { f.tensors["chosen_rewards"].shape = []int{3, 3} }},
		{"pair", `tensor chosen_rewards must have 1 dimensions and at least one score, got shape [0]`, func(f traced) { f.tensors["chosen_rewards"] = &tracedTensor{"F32", []int{0}, nil} }},
		{"pair", `tensor delta must have shape [9], got [9 1]`, func(f traced) { f.tensors["delta"].shape = []int{9, 1} }},
		{"pair", `tensor loss must have shape [], got [1]`, func(f traced) { f.tensors["loss"].shape = []int{1} }},
		{"pair", `delta[2] must be greater than 0, got -1`, func(f traced) { f.tensors["delta"].values[2] = -1 }},
		{"pair", `prior[1] must be in [0, 1], got NaN`, func(f traced) { f.tensors["prior"].values[1] = math.NaN() }},
		{"pair", `metadata constraint must be a JSON object, got "{\"gamma\":1}": json: unknown field "gamma"`, func(f traced) { f.metadata["constraint"] = `{"gamma":1}` }},
		{"pair", `metadata constraint must be a JSON object, got "{\"beta1\":\"1\"}"`, func(f traced) { f.metadata["constraint"] = `{"beta1":"1"}` }},
		{"pair", `metadata constraint must be a JSON object, got "{}{}": text follows the object`, func(f traced) { f.metadata["constraint"] = `{}{}` }},
		{"pair", `metadata constraint: beta1 must be finite, got +Inf`, func(f traced) { f.metadata["constraint"] = `{"beta1":"inf"}` }},
		{"pair", `metadata rank 0, run 0123456789ab and step 8 belong to a file named rank00000-run0123456789ab-step00000008.safetensors`, func(f traced) { f.metadata["step"] = "8" }},
		{"pair", `metadata rank 0, run ba9876543210 and step 7 belong to a file named rank00000-runba9876543210-step00000007.safetensors`, func(f traced) { f.metadata["run"] = "ba9876543210" }},
	} {
		f := traceFor(c.form, "float32", "mean", 0, 0, true, 7)
		name := f.name()
		c.change(f)
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), f.bytes(), 0o600))
		traceFor("pair", "float32", "mean", 0, 0, true, 6).write(t, dir)
		report, err := trace.Verify(dir)
		require.NoError(t, err, c.want)
		require.NotEmpty(t, report.Failures, c.want)
		assert.Contains(t, report.Failures[0], name+": "+c.want)
		assert.Equal(t, 2, report.Files)
		assert.Equal(t, 9, report.Pairs, "the other file was verified: %s", c.want)
		assert.False(t, report.OK())
	}
}

// Two processes with the same rank: the files of both are verified, and the report mentions them. A file
// of one process under the name of the other is a failure.
func TestVerifyTellsRunsApart(t *testing.T) {
	dir := t.TempDir()
	first, second := traceFor("pair", "float32", "mean", 0, 0, true, 7), traceFor("pair", "float32", "mean", 0, 0, true, 7)
	second.metadata["run"] = "ba9876543210"
	first.write(t, dir)
	report, err := trace.Verify(dir)
	require.NoError(t, err)
	assert.Equal(t, []int{1, 1}, []int{report.Runs, report.Ranks})
	assert.NotContains(t, report.String(), "runs of")
	second.write(t, dir)
	other := traceFor("pair", "float32", "mean", 0, 0, true, 7)
	other.metadata["rank"], other.metadata["run"] = "1", "cccccccccccc"
	other.write(t, dir)
	report, err = trace.Verify(dir)
	require.NoError(t, err)
	assert.True(t, report.OK(), "%v", report)
	assert.Equal(t, []int{3, 3, 2}, []int{report.Files, report.Runs, report.Ranks})
	assert.Contains(t, report.String(), "3 runs of 2 ranks: ")
	require.NoError(t, os.Rename(filepath.Join(dir, second.name()), filepath.Join(dir, first.name())))
	report, err = trace.Verify(dir)
	require.NoError(t, err)
	require.Len(t, report.Failures, 1)
	assert.Contains(t, report.Failures[0], first.name()+": metadata rank 0, run ba9876543210 and step 7 belong to a file named "+second.name())
}

func TestVerifyTruncated(t *testing.T) {
	f := traceFor("pair", "float32", "mean", 0, 0, true, 7)
	data := f.bytes()
	dir := t.TempDir()
	for _, n := range []int{0, 4, 100, len(data) / 2, len(data) - 1} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, f.name()), data[:n], 0o600))
		report, err := trace.Verify(dir)
		require.NoError(t, err)
		require.Len(t, report.Failures, 1)
		assert.True(t, strings.HasPrefix(report.Failures[0], f.name()+": "), report.Failures[0])
		assert.False(t, report.OK())
		assert.Contains(t, report.String(), "1 files, 0 pairs: 1 failures\n")
	}
}

// A change of any byte of a file gives a report and no panic.
func TestVerifyAnyByte(t *testing.T) {
	dir := t.TempDir()
	for _, form := range []string{"pair", "token", "dpo"} {
		f := traceFor(form, "float32", "mean", 0, 0, true, 7)
		data := f.bytes()
		for i := range data {
			data[i] ^= 0x40
			require.NoError(t, os.WriteFile(filepath.Join(dir, f.name()), data, 0o600))
			report, err := trace.Verify(dir)
			require.NoError(t, err)
			assert.Equal(t, 1, report.Files)
			if i < 8 {
				assert.False(t, report.OK(), "byte %d of the header's length", i)
			}
			data[i] ^= 0x40
		}
	}
}

func TestVerifyFolders(t *testing.T) {
	dir := t.TempDir()
	_, err := trace.Verify(filepath.Join(dir, "none"))
	var missing *os.PathError
	assert.ErrorAs(t, err, &missing)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "notes.txt"), nil, 0o600))
	report, err := trace.Verify(dir)
	assert.EqualError(t, err, fmt.Sprintf("trace folder %q must contain files such as rank00000-run0123456789ab-step00000000.safetensors, got none", dir))
	var argument *pcrm.ArgumentError
	assert.ErrorAs(t, err, &argument)
	assert.False(t, report.OK())
	// Files with other names are not left out, and gaps between steps are allowed.
	f := traceFor("pair", "float32", "mean", 0, 0, true, 7)
	f.write(t, dir)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "model.safetensors"), f.bytes(), 0o600))
	report, err = trace.Verify(dir)
	require.NoError(t, err)
	assert.Equal(t, []string{"model.safetensors: metadata rank 0, run 0123456789ab and step 7 belong to a file named rank00000-run0123456789ab-step00000007.safetensors: was the file renamed or replaced?"}, report.Failures)
}

// NaN and infinite scores are recorded as they are, and so are their results.
func TestVerifySpecialValues(t *testing.T) {
	for _, dtype := range []string{"float32", "float64"} {
		for _, special := range []float64{math.NaN(), inf, -inf} {
			f := traceFor("pair", dtype, "none", 0, 0, false, 3)
			set := func(name string, i int, v float64) { f.tensors[name].values[i] = v }
			for i, delta := range []float64{4, inf} {
				loss, grad := pcrm.PairLoss(special, delta, 0)
				set("chosen_rewards", i, special)
				set("rejected_rewards", i, 0)
				set("delta", i, delta)
				set("loss", i, loss)
				set("grad_chosen", i, grad)
				set("grad_rejected", i, -grad)
			}
			report := f.verify(t)
			assert.True(t, report.OK(), "%v", report)
			set("loss", 0, 1)
			report = f.verify(t)
			require.Equal(t, 1, report.Failed)
			assert.Contains(t, report.Failures[0], "loss[0]: got 1, want ")
			assert.Equal(t, inf, report.Rows[0].LossError)
			set("loss", 0, inf)
			set("loss", 3, math.NaN())
			assert.GreaterOrEqual(t, f.verify(t).Failed, 1)
		}
	}
	// A value that overflows in the computing dtype is recorded as an infinity.
	f := traceFor("pair", "float32", "none", 0, 0, false, 3)
	for name, v := range map[string]float64{"chosen_rewards": -3e38, "rejected_rewards": 3e38, "delta": 4, "loss": inf, "grad_chosen": -1, "grad_rejected": 1} {
		f.tensors[name].values[0] = v
	}
	report := f.verify(t)
	assert.True(t, report.OK(), "%v", report)
}

// A backend in float32 that rounds the margin and then the headroom of large scores stays within the
// tolerance. A backend that loses more digits does not.
func TestVerifyRoundingOfABackend(t *testing.T) {
	softplus := func(x float32) float32 {
		return max(x, 0) + float32(math.Log1p(math.Exp(-math.Abs(float64(x)))))
	}
	sigmoid := func(x float32) float32 { return float32(1 / (1 + math.Exp(-float64(x)))) }
	r := rand.New(rand.NewPCG(5, 5))
	for _, size := range []float64{1, 100, 1e4, 1e7} {
		f := traceFor("pair", "float32", "none", 0, 0, false, 3)
		coarse := traceFor("pair", "float32", "none", 0, 0, false, 3)
		f.metadata["backend"], coarse.metadata["backend"] = "torch", "coarse"
		for i := range 9 {
			w, l := float32(size*r.NormFloat64()), float32(size*r.NormFloat64())
			delta := w - l + float32(r.NormFloat64()) // near the ceiling, where it matters
			if !(delta > 0) {
				w, l = l, w
				delta = w - l + 1
			}
			m := w - l
			over := m - delta
			for _, x := range []struct {
				traced
				m, over float32
			}{{f, m, over}, {coarse, m * (1 + 0x1p-8), m*(1+0x1p-8) - delta}} {
				set := func(name string, v float32) { x.tensors[name].values[i] = float64(v) }
				set("chosen_rewards", w)
				set("rejected_rewards", l)
				set("delta", delta)
				set("loss", softplus(-x.m)+softplus(x.over))
				set("grad_chosen", sigmoid(x.over)-sigmoid(-x.m))
				set("grad_rejected", sigmoid(-x.m)-sigmoid(x.over))
			}
		}
		report := f.verify(t)
		assert.True(t, report.OK(), "scores of %g\n%v", size, report)
		assert.Equal(t, "torch", report.Rows[0].Backend)
		assert.False(t, coarse.verify(t).OK(), "scores of %g", size)
	}
}

// Constraints of every kind are checked, in the precision of the prior.
func TestVerifyConstraints(t *testing.T) {
	f := traceFor("pair", "float64", "mean", 0, 0, false, 4)
	const n = 9
	set := func(constraint string, delta func(i int) float64, prior *tracedTensor) trace.Report {
		f.metadata["constraint"] = constraint
		delete(f.tensors, "prior")
		if prior != nil {
			f.tensors["prior"] = prior
		}
		chosen, rejected, deltas := f.tensors["chosen_rewards"].values, f.tensors["rejected_rewards"].values, make([]float64, n)
		for i := range deltas {
			deltas[i] = delta(i)
		}
		gradChosen, gradRejected := make([]float64, n), make([]float64, n)
		loss, err := pcrm.RewardLoss(nil, gradChosen, gradRejected, chosen, rejected, deltas, pcrm.RewardOptions{})
		require.NoError(t, err)
		f.tensors["delta"].values, f.tensors["grad_chosen"].values, f.tensors["grad_rejected"].values = deltas, gradChosen, gradRejected
		f.tensors["loss"].values = []float64{loss}
		return f.verify(t)
	}
	constant := func(delta float64) func(int) float64 { return func(int) float64 { return delta } }
	fixed := `{"beta1":0,"beta2":1,"beta3":4.5,"floor":null,"cap":null,"low":null,"high":null,"seed":0}`
	assert.True(t, set(fixed, constant(4.5), nil).OK())
	assert.Equal(t, n, set(fixed, constant(4.6), nil).Failed)
	unconstrained := `{"beta1":0.0,"beta2":1.0,"beta3":"inf"}`
	assert.True(t, set(unconstrained, constant(inf), nil).OK())
	assert.Equal(t, n, set(unconstrained, constant(1e300), nil).Failed)

	random := `{"low":4,"high":5,"seed":18446744073709551615}`
	u := &tracedTensor{"F64", []int{n}, make([]float64, n)}
	for i := range u.values {
		u.values[i] = float64(i) / n
	}
	assert.True(t, set(random, func(i int) float64 { return 4 + float64(i)/n }, u).OK())
	assert.Equal(t, 1, set(random, func(i int) float64 { return 4 + float64(max(i, 1))/n }, u).Failed)
	f.tensors["prior"] = nil
	assert.Contains(t, set(random, constant(4), nil).Failures[0], "tensor prior is missing")

	// The delta of a float32 prior is as exact as float32.
	u.dtype = "F32"
	curve := func(i int) float64 { return traceConstraint.Delta(u.values[i]) }
	text := `{"beta1":10,"beta2":0.001,"beta3":-5,"cap":40}`
	assert.True(t, set(text, curve, u).OK())
	assert.True(t, set(text, func(i int) float64 { return float64(float32(curve(i))) }, u).OK())
	u.dtype = "F64"
	assert.False(t, set(text, func(i int) float64 { return float64(float32(curve(i))) }, u).OK())
	assert.True(t, set(`{"beta1":10,"cap":40}`, func(i int) float64 { return min(10/u.values[i], 40) }, u).OK(), "infinite but for the cap")
}

// A report stays short even if everything is wrong.
func TestVerifyManyFailures(t *testing.T) {
	dir := t.TempDir()
	for step := range 3 {
		f := traceFor("token", "float32", "mean", 0, 0, false, step)
		f.metadata["reduction"] = "sum"
		f.write(t, dir)
	}
	report, err := trace.Verify(dir)
	require.NoError(t, err)
	assert.Len(t, report.Failures, 20)
	assert.Greater(t, report.Failed, 40)
	assert.Contains(t, report.String(), fmt.Sprintf("and %d more\n3 files, 27 pairs: %d failures\n", report.Failed-20, report.Failed))
}

var update = flag.Bool("update", false, "write testdata/trace")

// The trace of the example pins the format, so that old traces stay readable.
func TestVerifySample(t *testing.T) {
	if *update {
		require.NoError(t, os.MkdirAll("testdata/trace", 0o755))
		for step, form := range []string{"pair", "token", "dpo"} {
			f := traceFor(form, "float32", "mean", 0, 0, true, step+1)
			require.NoError(t, os.WriteFile(filepath.Join("testdata/trace", f.name()), f.bytes(), 0o644))
		}
	}
	report, err := trace.Verify("testdata/trace")
	require.NoError(t, err)
	assert.True(t, report.OK(), "%v", report)
	again, err := trace.Verify("testdata/trace")
	require.NoError(t, err)
	assert.Equal(t, report, again)
	data, err := os.ReadFile("testdata/trace/rank00000-run0123456789ab-step00000001.safetensors")
	require.NoError(t, err)
	assert.True(t, bytes.Contains(data, []byte(`"pcrm_trace":"2"`)))
}

// A valid file with one setting, one shape and some bytes changed gives a report that names the file. It
// never causes a panic, and is never confirmed if a number is outside its tolerance.
func FuzzVerify(f *testing.F) {
	f.Add(uint8(0), "beta", "0.2", uint8(0), int64(9), uint16(0), []byte{0, 0, 0x80, 0x7f})
	f.Add(uint8(1), "reduction", "none", uint8(3), int64(0), uint16(40), []byte{0xff, 0xff, 0xff, 0xff})
	f.Add(uint8(2), "label_smoothing", "NaN", uint8(2), int64(1), uint16(9), []byte{})
	f.Add(uint8(0), "constraint", `{"beta1":1e308,"beta2":0,"beta3":"inf"}`, uint8(1), int64(9), uint16(0), []byte{})
	f.Add(uint8(1), "pad_token_id", "-1", uint8(0), int64(-1), uint16(700), []byte{1, 2, 3, 4, 5, 6, 7, 8})
	f.Add(uint8(0), "versions", "other", uint8(0), int64(9), uint16(0), []byte{})
	folder := f.TempDir()
	f.Fuzz(func(t *testing.T, form uint8, key, value string, tensor uint8, size int64, at uint16, patch []byte) {
		forms := []func() traced{
			func() traced { return traceOf[float32]("pair", "bfloat16", "mean", 0.1, 0.01, true, 0) },
			func() traced { return traceOf[float64]("token", "float64", "sum", 0, 0, false, 0) },
			func() traced { return traceOf[float32]("dpo", "float32", "none", 0, 0, true, 0) },
		}
		file := forms[int(form)%len(forms)]()
		name := file.name()
		file.metadata[key] = value
		names := slices.Sorted(maps.Keys(file.tensors))
		changed := file.tensors[names[int(tensor)%len(names)]]
		if len(changed.shape) > 0 {
			changed.shape = slices.Clone(changed.shape)
			changed.shape[0] = int(size)
		}
		data := file.bytes()
		copy(data[min(int(at), len(data)):], patch)
		dir, err := os.MkdirTemp(folder, "")
		require.NoError(t, err)
		defer os.RemoveAll(dir)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
		report, err := trace.Verify(dir)
		require.NoError(t, err)
		require.Equal(t, 1, report.Files)
		require.Equal(t, report.OK(), report.Failed == 0)
		require.Len(t, report.Failures, min(report.Failed, 20))
		for _, failure := range report.Failures {
			require.True(t, strings.HasPrefix(failure, name+": "), failure)
		}
		for _, row := range report.Rows {
			if row.LossError > row.LossTolerance || row.GradientError > row.GradientTolerance ||
				math.IsNaN(row.LossError) || math.IsNaN(row.GradientError) {
				require.False(t, report.OK(), "%v", report)
			}
		}
	})
}

package trace

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/pcrm-project/pcrm/pcrm"
	"github.com/pcrm-project/pcrm/pcrm/internal/argument"
	"github.com/pcrm-project/pcrm/pcrm/internal/numeric"
	"github.com/pcrm-project/pcrm/pcrm/internal/safetensors"
)

// Verify recomputes the losses and gradients that a training run recorded, whatever backend
// the run used. It uses the loop over [pcrm.PairLoss] in float64.
//
// A trace is a folder of files named rank%05d-run%s-step%08d.safetensors. Each file records one
// call of a loss. A run consists of the files that one process writes to one trace. Its name, 12
// random hexadecimal digits, is part of the file name and of the metadata, so processes do not
// overwrite each other's files, and a renamed file is a failure. The metadata, all strings, is
//
//	pcrm_trace                   "2"
//	form                         "pair", "token" or "dpo"
//	backend, versions            free text; versions may be missing
//	dtype                        of the scores: "float32", "float64", "bfloat16" or "float16"
//	reduction                    "mean", "sum" or "none"
//	label_smoothing, center_rewards_coefficient    numbers; dpo may omit the latter
//	beta                         dpo only
//	pad_token_id                 token only; -1 is pcrm.NoPad
//	rank, run, step              as in the file name
//	constraint                   optional; a JSON object of beta1, beta2, beta3, floor, cap,
//	                             low, high and seed; values may be null, missing or "inf"
//
// The tensors, for B pairs, have the dtype of the scores (D) or the computing dtype (C), which
// is float64 for float64 and float32 for all others:
//
//	pair   chosen_rewards, rejected_rewards (B) D
//	token  chosen_rewards, rejected_rewards (B, L) D; chosen_ids, rejected_ids (B, L) int64
//	dpo    policy_chosen_logps, policy_rejected_logps, reference_chosen_logps,
//	       reference_rejected_logps (B) D; chosen_rewards, rejected_rewards (B) C, the implicit
//	       rewards
//	all    delta (B) C; loss C, of shape () or, for "none", (B); grad_chosen, grad_rejected C, in
//	       the shape of the scores, the gradient of the reduced loss with respect to them;
//	       prior (B), float32 or float64, optional
//
// If there is a constraint, delta must be its delta of prior. Only a fixed constraint needs no
// prior.
//
// # Tolerances
//
// A recorded loss may differ from the recomputed one by r S, a gradient by g S:
//
//	           r      g      u      computing in
//	float64    1e-12  2e-14  2^-53  float64
//	others     2e-6   2e-6   2^-24  float32
//
// S is the scale of the rounding errors. With m the margin, c the centering coefficient and k
// the factor of the gradient (1/B for the mean, 1/length for a token of a span, beta for dpo),
//
//	loss      S = L + 6u/r M (sigmoid(-m) + sigmoid(m-delta)), reduced like the loss
//	gradient  S = k (1 + 6u/g M (sigmoid'(m) + sigmoid'(m-delta)) + 2 c |r_w + r_l|)
//	rewards   S = their absolute value
//
// The first part of each S covers the rounding of the exponentials, the logarithms and the
// sum over the pairs. In float32 both tolerances are 17 units in the last place; the kernels
// of package pcrm need 10. In float64, g is twice the kernels' 5e-15 for each of the two
// terms, and r allows for adding thousands of pairs one by one.
//
// The second part covers the rounding of the margin. A backend computes m, and perhaps
// delta - m, in its own precision, which moves m by at most 6 roundings of M. M is |m| and,
// for dpo, beta (|log-ratio_w| + |log-ratio_l|). The derivative propagates this error. There
// are 2 such roundings for pairs, and 5 for dpo: of the ratios, their difference, beta, the
// product, and delta - m.
//
// Outside a span a gradient must be exactly 0. A NaN or an infinity must be recorded where
// one is recomputed, and nowhere else. delta may be off by 8 units in the last place of
// |beta1/(prior+beta2)| + |beta3|, or of |low| + |high|.
//
// A score far out on a flat part of its loss has no influence on the results, so a corruption
// of such a score cannot be detected.
//
// [Report.Failures] lists what is wrong with a file: it cannot be read or is truncated; a
// tensor is missing, unknown, or of a wrong dtype or shape; settings are unknown or missing; a
// delta is not greater than 0; an element is outside its tolerance. Files whose names do not
// end in .safetensors are ignored.
//
// Errors: an [*os.PathError] if the folder cannot be read; a [*pcrm.ArgumentError] if it does
// not contain a trace.
func Verify(dir string) (Report, error) {
	var report Report
	runs := map[run]bool{}
	names, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		return report, err
	}
	for _, name := range names {
		if filepath.Ext(name.Name()) == ".safetensors" {
			report.Files++
			if err := verifyFile(&report, runs, dir, name.Name()); err != nil {
				report.fail("%s: %v", name.Name(), err)
			}
		}
	}
	if report.Files == 0 {
		return report, argument.Errorf("trace", -1, "folder %q must contain files such as rank00000-run0123456789ab-step00000000.safetensors, got none", dir)
	}
	ranks := map[int64]bool{}
	for r := range runs {
		ranks[r.rank] = true
	}
	report.Runs, report.Ranks = len(runs), len(ranks)
	slices.SortFunc(report.Rows, func(a, b Row) int {
		return cmp.Or(cmp.Compare(a.Form, b.Form), cmp.Compare(a.Dtype, b.Dtype), cmp.Compare(a.Backend, b.Backend))
	})
	return report, nil
}

// The dtypes of scores: their names in a file, and the dtypes in which they are computed.
var (
	stored    = map[string]string{"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}
	computing = map[string]string{"float64": "F64", "float32": "F32", "bfloat16": "F32", "float16": "F32"}
)

type tolerance struct{ loss, gradient, unit float64 }

var tolerances = map[string]tolerance{
	"F64": {1e-12, 2e-14, 0x1p-53},
	"F32": {2e-6, 2e-6, 0x1p-24},
}

// formScores lists the score tensors of each form. Those of the token form have rows of
// tokens.
var formScores = map[string][]string{
	"pair":  {"chosen_rewards", "rejected_rewards"},
	"token": {"chosen_rewards", "rejected_rewards"},
	"dpo":   {"policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps"},
}

// run identifies the files that one process wrote to one trace.
type run struct {
	rank int64
	name string
}

// record is a file of a trace.
type record struct {
	*safetensors.File
	name   string
	run    run
	report *Report
	row    *Row

	form, dtype, backend, compute string
	options                       pcrm.RewardOptions
	beta                          float64
	padToken                      int64
	tolerance

	shape                         []int // of the scores
	n, width                      int   // pairs, and scores of each
	scores                        [][]float64
	delta, loss                   []float64
	gradChosen, gradRejected      []float64
	chosenRewards, rejectedReward []float64 // dpo
	chosenIDs, rejectedIDs        []int64   // token
}

func verifyFile(report *Report, runs map[run]bool, dir, name string) (err error) {
	r := record{name: name, report: report}
	if r.File, err = safetensors.Read(filepath.Join(dir, name)); err != nil {
		return err
	}
	if err := r.settings(); err != nil {
		return err
	}
	runs[r.run] = true
	if err := r.tensors(); err != nil {
		return err
	}
	if err := r.checkDelta(); err != nil {
		return err
	}
	r.row = report.row(r.form, r.dtype, r.backend)
	r.row.Files++
	r.row.Pairs += r.n
	report.Pairs += r.n
	r.recompute()
	return nil
}

// text returns an entry of the metadata.
func (r *record) text(key string) (string, error) {
	s, ok := r.Metadata[key]
	if !ok {
		return "", fmt.Errorf("metadata %s is missing", key)
	}
	return s, nil
}

// number parses an entry of the metadata.
func number[T any](r *record, key string, dst *T, parse func(string) (T, error)) error {
	s, err := r.text(key)
	if err == nil {
		if *dst, err = parse(s); err != nil {
			return fmt.Errorf("metadata %s must be a number, got %q", key, s)
		}
	}
	return err
}

func decimal(s string) (float64, error) { return strconv.ParseFloat(s, 64) }
func integer(s string) (int64, error)   { return strconv.ParseInt(s, 10, 64) }

func (r *record) settings() (err error) {
	var missing [3]error
	r.form, missing[0] = r.text("form")
	r.dtype, missing[1] = r.text("dtype")
	r.backend, missing[2] = r.text("backend")
	if err := cmp.Or(missing[:]...); err != nil {
		return err
	}
	reductions := map[string]pcrm.Reduction{"mean": pcrm.Mean, "sum": pcrm.Sum, "none": pcrm.None}
	reduction, known := reductions[r.Metadata["reduction"]]
	var rank, step int64
	switch {
	case r.Metadata["pcrm_trace"] != "2":
		return fmt.Errorf("metadata pcrm_trace must be \"2\", got %q: record the trace with this version of pcrm", r.Metadata["pcrm_trace"])
	case formScores[r.form] == nil:
		return fmt.Errorf("metadata form must be pair, token or dpo, got %q", r.form)
	case stored[r.dtype] == "":
		return fmt.Errorf("metadata dtype must be float64, float32, bfloat16 or float16, got %q", r.dtype)
	case !known:
		return fmt.Errorf("metadata reduction must be mean, sum or none, got %q", r.Metadata["reduction"])
	}
	r.options.Reduction = reduction
	r.compute = computing[r.dtype]
	r.tolerance = tolerances[r.compute]
	err = cmp.Or(
		number(r, "rank", &rank, integer),
		number(r, "step", &step, integer),
		number(r, "label_smoothing", &r.options.LabelSmoothing, decimal),
	)
	if _, given := r.Metadata["center_rewards_coefficient"]; err == nil && (given || r.form != "dpo") {
		err = number(r, "center_rewards_coefficient", &r.options.CenterRewardsCoefficient, decimal)
	}
	if err == nil && r.form == "token" {
		err = number(r, "pad_token_id", &r.padToken, integer)
	}
	if err == nil && r.form == "dpo" {
		err = number(r, "beta", &r.beta, decimal)
	}
	if err == nil {
		err = r.options.Validate()
	}
	switch {
	case err != nil:
		return err
	case r.form == "dpo" && (!(r.beta > 0) || math.IsInf(r.beta, 1)):
		return fmt.Errorf("metadata beta must be greater than 0 and finite, got %v", r.beta)
	case r.form == "dpo" && r.options.CenterRewardsCoefficient != 0:
		return fmt.Errorf("metadata center_rewards_coefficient must be 0 for dpo, got %v", r.options.CenterRewardsCoefficient)
	}
	name, err := r.text("run")
	if err != nil {
		return err
	}
	if want := fmt.Sprintf("rank%05d-run%s-step%08d.safetensors", rank, name, step); r.name != want {
		return fmt.Errorf("metadata rank %d, run %s and step %d belong to a file named %s: was the file renamed or replaced?", rank, name, step, want)
	}
	r.run = run{rank, name}
	return nil
}

// take removes a tensor from the remaining ones and checks its dtype and shape.
func (r *record) take(name string, shape []int, dtypes ...string) (safetensors.Tensor, error) {
	t, ok := r.Tensors[name]
	delete(r.Tensors, name)
	switch {
	case !ok:
		return t, fmt.Errorf("tensor %s is missing", name)
	case !slices.Contains(dtypes, t.Dtype):
		return t, fmt.Errorf("tensor %s must be %s, got %s", name, strings.Join(dtypes, " or "), t.Dtype)
	case shape != nil && !slices.Equal(t.Shape, shape):
		return t, fmt.Errorf("tensor %s must have shape %v, got %v", name, shape, t.Shape)
	}
	return t, nil
}

// tensors reads all tensors except prior.
func (r *record) tensors() error {
	names, dimensions := formScores[r.form], 1
	if r.form == "token" {
		dimensions = 2
	}
	first, ok := r.Tensors[names[0]]
	if ok && (len(first.Shape) != dimensions || first.Len() == 0) {
		return fmt.Errorf("tensor %s must have %d dimensions and at least one score, got shape %v", names[0], dimensions, first.Shape)
	}
	r.shape = first.Shape
	r.scores = make([][]float64, len(names))
	wanted := make([]*[]float64, len(names))
	for i := range names {
		wanted[i] = &r.scores[i]
	}
	if err := r.floats(stored[r.dtype], r.shape, names, wanted...); err != nil {
		return err
	}
	r.n = r.shape[0]
	r.width = first.Len() / r.n
	batch, lossShape := []int{r.n}, []int{}
	if r.options.Reduction == pcrm.None {
		lossShape = batch
	}
	err := cmp.Or(
		r.floats(r.compute, batch, []string{"delta"}, &r.delta),
		r.floats(r.compute, lossShape, []string{"loss"}, &r.loss),
		r.floats(r.compute, r.shape, []string{"grad_chosen", "grad_rejected"}, &r.gradChosen, &r.gradRejected),
	)
	if err == nil && r.form == "dpo" {
		err = r.floats(r.compute, batch, []string{"chosen_rewards", "rejected_rewards"}, &r.chosenRewards, &r.rejectedReward)
	}
	if err == nil && r.form == "token" {
		chosen, missing := r.take("chosen_ids", r.shape, "I64")
		rejected, err := r.take("rejected_ids", r.shape, "I64")
		r.chosenIDs, r.rejectedIDs = int64s(chosen), int64s(rejected)
		return cmp.Or(missing, err)
	}
	return err
}

// floats reads tensors that share a dtype and a shape.
func (r *record) floats(dtype string, shape []int, names []string, dst ...*[]float64) error {
	for i, name := range names {
		t, err := r.take(name, shape, dtype)
		if err != nil {
			return err
		}
		*dst[i] = float64s(t)
	}
	return nil
}

func float64s(t safetensors.Tensor) []float64 {
	dst := make([]float64, t.Len())
	safetensors.Float64s(dst, t.Data, t.Dtype)
	return dst
}

func int64s(t safetensors.Tensor) []int64 {
	dst := make([]int64, len(t.Data)/8)
	for i := range dst {
		dst[i] = int64(binary.LittleEndian.Uint64(t.Data[8*i:]))
	}
	return dst
}

// jsonNumber is a number of a constraint. null means none; "inf" stands for infinity, which JSON lacks.
type jsonNumber float64

func (x *jsonNumber) UnmarshalJSON(data []byte) error {
	switch string(data) {
	case "null":
		return nil
	case `"inf"`:
		*x = jsonNumber(math.Inf(1))
		return nil
	}
	return json.Unmarshal(data, (*float64)(x))
}

// constraint returns the constraint of the metadata, or nil if there is none.
func (r *record) constraint() (*pcrm.Constraint, error) {
	text, ok := r.Metadata["constraint"]
	if !ok {
		return nil, nil
	}
	var c struct {
		Beta1, Beta2, Beta3, Floor, Cap, Low, High jsonNumber
		Seed                                       uint64
	}
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(&c)
	if err == nil && decoder.More() {
		err = errors.New("text follows the object")
	}
	if err != nil {
		return nil, fmt.Errorf("metadata constraint must be a JSON object, got %q: %w", text, err)
	}
	k := &pcrm.Constraint{Beta1: float64(c.Beta1), Beta2: float64(c.Beta2), Beta3: float64(c.Beta3), Floor: float64(c.Floor),
		Cap: float64(c.Cap), Low: float64(c.Low), High: float64(c.High), Seed: c.Seed}
	if err := k.Validate(); err != nil {
		return nil, fmt.Errorf("metadata constraint: %w", err)
	}
	return k, nil
}

// checkDelta compares delta with that of the constraint and checks that no tensor is left.
func (r *record) checkDelta() error {
	for i, d := range r.delta {
		if err := argument.Positive("delta", i, d); err != nil {
			return err
		}
	}
	c, err := r.constraint()
	if err != nil {
		return err
	}
	prior, unit := make([]float64, r.n), r.unit
	if _, given := r.Tensors["prior"]; given {
		t, err := r.take("prior", []int{r.n}, "F32", "F64")
		if err != nil {
			return err
		}
		prior = float64s(t)
		unit = max(unit, tolerances[t.Dtype].unit)
	} else if c != nil && (c.IsRandom() || c.Beta1 != 0) {
		return errors.New("tensor prior is missing, but the constraint needs it")
	}
	if len(r.Tensors) > 0 {
		return fmt.Errorf("tensor %q is unknown", slices.Min(slices.Collect(maps.Keys(r.Tensors))))
	}
	if c == nil {
		return nil
	}
	for i, s := range prior {
		if !(s >= 0 && s <= 1) {
			return argument.Errorf("prior", i, "must be in [0, 1], got %v", s)
		}
		want := c.Delta(s)
		scale := math.Abs(c.Low) + math.Abs(c.High)
		if !c.IsRandom() {
			scale = math.Abs(c.Beta1/(s+c.Beta2)) + math.Abs(c.Beta3)
		}
		if notFinite(scale) { // a curve that only its cap keeps finite at s = 0
			scale = want
		}
		r.compare("delta", i, r.delta[i], want, scale, 8*unit, nil)
	}
	return nil
}

// recompute compares loss, gradients and rewards with the recomputed values.
func (r *record) recompute() {
	var total, totalScale float64
	reduce := 1.0
	if r.options.Reduction == pcrm.Mean {
		reduce = 1 / float64(r.n)
	}
	for i := range r.n {
		start, end := 0, 1
		row := i * r.width
		if r.form == "token" {
			next := row + r.width
			start, end = pcrm.Span(r.chosenIDs[row:next], r.rejectedIDs[row:next], r.padToken)
		}
		length := float64(end - start)
		var loss, lossScale float64
		for at := row; at < row+r.width; at++ {
			var p expected
			if at >= row+start && at < row+end {
				p = r.expect(at, r.delta[i])
			}
			loss += p.loss / length
			lossScale += p.lossScale / length
			factor := reduce / length
			r.compare("grad_chosen", at, r.gradChosen[at], p.gradChosen*factor, p.gradScale*factor, r.gradient, &r.row.GradientError)
			r.compare("grad_rejected", at, r.gradRejected[at], p.gradRejected*factor, p.gradScale*factor, r.gradient, &r.row.GradientError)
		}
		if r.form == "dpo" {
			for _, reward := range []struct {
				name      string
				got, want float64
			}{
				{"chosen_rewards", r.chosenRewards[i], r.beta * (r.scores[0][i] - r.scores[2][i])},
				{"rejected_rewards", r.rejectedReward[i], r.beta * (r.scores[1][i] - r.scores[3][i])},
			} {
				r.compare(reward.name, i, reward.got, reward.want, math.Abs(reward.want), r.tolerance.loss, &r.row.LossError)
			}
		}
		if r.options.Reduction == pcrm.None {
			r.compare("loss", i, r.loss[i], loss, lossScale, r.tolerance.loss, &r.row.LossError)
		}
		total += loss * reduce
		totalScale += lossScale * reduce
	}
	if r.options.Reduction != pcrm.None {
		r.compare("loss", -1, r.loss[0], total, totalScale, r.tolerance.loss, &r.row.LossError)
	}
}

// expected holds a pair's loss and gradient before reduction, with the S of each.
type expected struct{ loss, lossScale, gradChosen, gradRejected, gradScale float64 }

// expect recomputes the pair of scores at an index.
func (r *record) expect(at int, delta float64) (p expected) {
	w, l := r.scores[0][at], r.scores[1][at]
	sum, margin := w+l, w-l
	rounding, beta := math.Abs(margin), 1.0
	if r.form == "dpo" {
		beta = r.beta
		w, l = w-r.scores[2][at], l-r.scores[3][at]
		margin = beta * (w - l)
		rounding = beta * (math.Abs(w) + math.Abs(l))
	}
	if notFinite(rounding) { // infinite values have no rounding error
		rounding = 0
	}
	loss, grad := pcrm.PairLoss(margin, delta, r.options.LabelSmoothing)
	under, over := numeric.Sigmoid(-margin), numeric.Sigmoid(margin-delta)
	if math.IsInf(delta, 1) {
		// inf - inf would be NaN. The second term is the softplus(m) of label smoothing.
		over = r.options.LabelSmoothing * (1 - under)
	}
	p.loss = loss
	// Exponentials below the smallest normal number may have been replaced by 0.
	p.lossScale = loss + 6*r.unit/r.tolerance.loss*rounding*(under+over) + 0x1p-100
	p.gradChosen, p.gradRejected = beta*grad, -beta*grad
	p.gradScale = beta * (1 + 6*r.unit/r.gradient*rounding*(under*(1-under)+over*(1-over)))
	if c := r.options.CenterRewardsCoefficient; c != 0 {
		p.loss += c * sum * sum
		p.lossScale += c * sum * sum
		p.gradChosen += 2 * c * sum
		p.gradRejected += 2 * c * sum
		p.gradScale += 2 * c * math.Abs(sum)
	}
	return p
}

// compare records the error of a recorded value in units of its scale S.
func (r *record) compare(tensor string, i int, got, want, scale, tolerance float64, worst *float64) {
	if single := float64(float32(want)); r.compute == "F32" && notFinite(single) {
		want = single // it overflowed when it was recorded
	}
	if got == want || math.IsNaN(got) && math.IsNaN(want) {
		return
	}
	off := math.Abs(got-want) / scale
	if notFinite(got) || notFinite(want) {
		off = math.Inf(1)
	}
	if worst != nil {
		*worst = max(*worst, off)
	}
	if off <= tolerance {
		return
	}
	if i >= 0 {
		tensor = fmt.Sprintf("%s[%d]", tensor, i)
	}
	r.report.fail("%s: %s: got %v, want %v (tolerance %.2g)", r.name, tensor, got, want, tolerance*scale)
}

func notFinite(x float64) bool { return math.IsNaN(x) || math.IsInf(x, 0) }

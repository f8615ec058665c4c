package trace

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
)

// Report is what [Verify] found.
type Report struct {
	Files int   // that were looked at, good and bad
	Runs  int   // that wrote them: a process writes one run in each trace
	Ranks int   // of these runs
	Pairs int   // whose loss and gradient were recomputed
	Rows  []Row // one for each form, dtype and backend, in this order

	// Failures name file, tensor and index of what is not as it should be, with both
	// values: the first 20 of the Failed that there are.
	Failures []string
	Failed   int
}

// Row is the worst of the files of one kind. The errors are in the units of
// [Verify]'s table, and +Inf where recorded and recomputed value differ in kind.
type Row struct {
	Form, Dtype, Backend             string
	Files, Pairs                     int
	LossError, GradientError         float64
	LossTolerance, GradientTolerance float64
}

// maxFailures keeps a report readable where everything is wrong.
const maxFailures = 20

// OK reports whether all that was recorded could be confirmed.
func (r Report) OK() bool { return r.Failed == 0 && r.Files > 0 }

// String is the report as a table, the failures below it.
func (r Report) String() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "form\tdtype\tbackend\tfiles\tpairs\tloss error\t(at most)\tgradient error\t(at most)")
	for _, row := range r.Rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%.1e\t%.0e\t%.1e\t%.0e\n", row.Form, row.Dtype, row.Backend, row.Files, row.Pairs,
			row.LossError, row.LossTolerance, row.GradientError, row.GradientTolerance)
	}
	w.Flush()
	for _, f := range r.Failures {
		fmt.Fprintln(&b, f)
	}
	if more := r.Failed - len(r.Failures); more > 0 {
		fmt.Fprintf(&b, "and %d more\n", more)
	}
	verdict := "ok"
	if !r.OK() {
		verdict = fmt.Sprintf("%d failures", r.Failed)
	}
	if r.Runs > r.Ranks {
		fmt.Fprintf(&b, "%d runs of %d ranks: a resumed training, or several processes of one rank\n", r.Runs, r.Ranks)
	}
	fmt.Fprintf(&b, "%d files, %d pairs: %s\n", r.Files, r.Pairs, verdict)
	return b.String()
}

func (r *Report) fail(format string, args ...any) {
	if r.Failed++; len(r.Failures) < maxFailures {
		r.Failures = append(r.Failures, fmt.Sprintf(format, args...))
	}
}

// row finds or makes the row of a kind.
func (r *Report) row(form, dtype, backend string) *Row {
	i := slices.IndexFunc(r.Rows, func(row Row) bool {
		return row.Form == form && row.Dtype == dtype && row.Backend == backend
	})
	if i < 0 {
		i = len(r.Rows)
		t := tolerances[computing[dtype]]
		r.Rows = append(r.Rows, Row{Form: form, Dtype: dtype, Backend: backend, LossTolerance: t.loss, GradientTolerance: t.gradient})
	}
	return &r.Rows[i]
}

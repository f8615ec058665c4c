package trace

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
)

// Report is the result of [Verify].
type Report struct {
	Files int   // the number of files that were read, valid or not
	Runs  int   // the number of runs that wrote them; a process writes one run per trace
	Ranks int   // the number of distinct ranks of these runs
	Pairs int   // the number of pairs whose loss and gradient were recomputed
	Rows  []Row // one for each form, dtype and backend, sorted in this order

	// Failures describes the first 20 failures. Each names the file, tensor and index, with
	// the recorded and the recomputed value. Failed is the total number of failures.
	Failures []string
	Failed   int
}

// Row holds the largest errors over the files with one form, dtype and backend. The errors are in the units of the
// table in the documentation of [Verify]. They are +Inf if the recorded or the recomputed value
// is not finite and the two differ.
type Row struct {
	Form, Dtype, Backend             string
	Files, Pairs                     int
	LossError, GradientError         float64
	LossTolerance, GradientTolerance float64
}

// maxFailures limits the length of a report.
const maxFailures = 20

// OK reports whether everything that was recorded has been confirmed.
func (r Report) OK() bool { return r.Failed == 0 && r.Files > 0 }

// String returns the report as a table, followed by the failures.
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

// row returns the row of a kind, adding it if necessary.
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

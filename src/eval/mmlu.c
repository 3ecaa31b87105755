/* MMLU's subjects and prompts: see mmlu.h. */
#include "eval/mmlu.h"

#include <string.h>

const char *const mmlu_group_name[MMLU_GROUPS] = {"mmlu_stem", "mmlu_other", "mmlu_social_sciences",
                                                  "mmlu_humanities"};
const char *const mmlu_group_alias[MMLU_GROUPS] = {"stem", "other", "social sciences",
                                                   "humanities"};

const struct task_definition mmlu_definition = {
    .name = "mmlu",
    .version = 1,
    .doc_to_text =
        "{{question}}\\nA. {{choices[0]}}\\nB. {{choices[1]}}\\nC. {{choices[2]}}\\nD. "
        "{{choices[3]}}\\nAnswer:"};

const struct mmlu_subject mmlu_subjects[MMLU_SUBJECTS] = {
    {"abstract_algebra", MMLU_STEM},
    {"anatomy", MMLU_STEM},
    {"astronomy", MMLU_STEM},
    {"business_ethics", MMLU_OTHER},
    {"clinical_knowledge", MMLU_OTHER},
    {"college_biology", MMLU_STEM},
    {"college_chemistry", MMLU_STEM},
    {"college_computer_science", MMLU_STEM},
    {"college_mathematics", MMLU_STEM},
    {"college_medicine", MMLU_OTHER},
    {"college_physics", MMLU_STEM},
    {"computer_security", MMLU_STEM},
    {"conceptual_physics", MMLU_STEM},
    {"econometrics", MMLU_SOCIAL_SCIENCES},
    {"electrical_engineering", MMLU_STEM},
    {"elementary_mathematics", MMLU_STEM},
    {"formal_logic", MMLU_HUMANITIES},
    {"global_facts", MMLU_OTHER},
    {"high_school_biology", MMLU_STEM},
    {"high_school_chemistry", MMLU_STEM},
    {"high_school_computer_science", MMLU_STEM},
    {"high_school_european_history", MMLU_HUMANITIES},
    {"high_school_geography", MMLU_SOCIAL_SCIENCES},
    {"high_school_government_and_politics", MMLU_SOCIAL_SCIENCES},
    {"high_school_macroeconomics", MMLU_SOCIAL_SCIENCES},
    {"high_school_mathematics", MMLU_STEM},
    {"high_school_microeconomics", MMLU_SOCIAL_SCIENCES},
    {"high_school_physics", MMLU_STEM},
    {"high_school_psychology", MMLU_SOCIAL_SCIENCES},
    {"high_school_statistics", MMLU_STEM},
    {"high_school_us_history", MMLU_HUMANITIES},
    {"high_school_world_history", MMLU_HUMANITIES},
    {"human_aging", MMLU_OTHER},
    {"human_sexuality", MMLU_SOCIAL_SCIENCES},
    {"international_law", MMLU_HUMANITIES},
    {"jurisprudence", MMLU_HUMANITIES},
    {"logical_fallacies", MMLU_HUMANITIES},
    {"machine_learning", MMLU_STEM},
    {"management", MMLU_OTHER},
    {"marketing", MMLU_OTHER},
    {"medical_genetics", MMLU_OTHER},
    {"miscellaneous", MMLU_OTHER},
    {"moral_disputes", MMLU_HUMANITIES},
    {"moral_scenarios", MMLU_HUMANITIES},
    {"nutrition", MMLU_OTHER},
    {"philosophy", MMLU_HUMANITIES},
    {"prehistory", MMLU_HUMANITIES},
    {"professional_accounting", MMLU_OTHER},
    {"professional_law", MMLU_HUMANITIES},
    {"professional_medicine", MMLU_OTHER},
    {"professional_psychology", MMLU_SOCIAL_SCIENCES},
    {"public_relations", MMLU_SOCIAL_SCIENCES},
    {"security_studies", MMLU_SOCIAL_SCIENCES},
    {"sociology", MMLU_SOCIAL_SCIENCES},
    {"us_foreign_policy", MMLU_SOCIAL_SCIENCES},
    {"virology", MMLU_OTHER},
    {"world_religions", MMLU_HUMANITIES},
};

const struct mmlu_subject *mmlu_find(const char *name) {
  for (int i = 0; i < MMLU_SUBJECTS; i++)
    if (!strcmp(mmlu_subjects[i].name, name)) return &mmlu_subjects[i];
  return NULL;
}

const struct mmlu_subject *mmlu_subject_of(const json_t *doc, struct error *err) {
  const char *name = item_text(doc, "subject", err);
  const struct mmlu_subject *subject = name ? mmlu_find(name) : NULL;
  if (name && !subject)
    error_set(err, STATUS_REFUSED, "\"subject\" is \"%.60s\", which is none of MMLU's", name);
  return subject;
}

/* Names are written with spaces in prompts. */
static void put_spaced(struct strbuf *out, const char *name) {
  for (; *name; name++) strbuf_putc(out, *name == '_' ? ' ' : *name);
}

enum status mmlu_preamble(struct strbuf *out, const struct mmlu_subject *subject,
                          const struct item_file *dev, int shots, struct error *err) {
  int found = 0, answer;
  strbuf_puts(out, "The following are multiple choice questions (with answers) about ");
  put_spaced(out, subject->name);
  strbuf_puts(out, ".\n\n");
  for (int64_t i = 0; found < shots && i < dev->count; i++) {
    const struct mmlu_subject *other = mmlu_subject_of(dev->docs[i], err);
    if (!other) return item_file_blame(dev, i, err);
    if (other != subject) continue;
    if (task_mmlu_question(out, dev->docs[i], &answer, err)) return item_file_blame(dev, i, err);
    strbuf_printf(out, " %c\n\n", 'A' + answer);
    found++;
  }
  if (found < shots)
    return error_set(err, STATUS_REFUSED, "%s has %d examples of %s and not the %d asked for",
                     dev->path, found, subject->name, shots);
  return STATUS_OK;
}

enum status mmlu_make(struct task_item *item, const char *preamble, const json_t *doc,
                      struct error *err) {
  static const char *const letters[] = {"A", "B", "C", "D"};
  struct strbuf *context = &item->contexts[item->context_count++];
  strbuf_puts(context, preamble);
  enum status status = task_mmlu_question(context, doc, &item->target, err);
  if (status) return status;
  for (int i = 0; i < 4; i++) task_item_add_choice(item, letters[i]);
  return STATUS_OK;
}

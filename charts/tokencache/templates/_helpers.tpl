{{- define "tokencache.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* A Service's name has at most 63 characters, no dot, and starts with a letter. */}}
{{- define "tokencache.metricsServiceName" -}}
{{- $name := include "tokencache.fullname" . | replace "." "-" -}}
{{- if regexMatch "^[0-9]" $name -}}
{{- $name = printf "tokencache-%s" $name -}}
{{- end -}}
{{- printf "%s-metrics" ($name | trunc 55 | trimSuffix "-") -}}
{{- end -}}

{{- define "tokencache.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "tokencache.labels" -}}
{{ include "tokencache.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- end -}}

{{- define "tokencache.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "tokencache.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "tokencache.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "tokencache.rules" -}}
rules:
{{ .Files.Get "files/rules.yaml" | trim | indent 2 }}
{{- if .Values.features.jobs }}
{{ .Files.Get "files/rules-jobs.yaml" | trim | indent 2 }}
{{- end }}
{{- if .Values.features.serviceAccountTokens }}
{{ .Files.Get "files/rules-service-account-tokens.yaml" | trim | indent 2 }}
{{- end }}
{{- if .Values.features.restarts }}
{{ .Files.Get "files/rules-restarts.yaml" | trim | indent 2 }}
{{- end }}
{{- end -}}
